"""Classifiers as pairs of pure functions; the only package that knows Flax."""

from mixjax import _extras

with _extras.needed("train"):
    import flax as flax

from mixjax.models import conv as conv
from mixjax.models.attack_networks import attack_network as attack_network
from mixjax.models.linear_classifier import linear as linear
from mixjax.models.model import Model as Model
from mixjax.models.model import from_linen as from_linen
from mixjax.models.model import from_nnx as from_nnx
from mixjax.models.plain_cnn import cifar_cnn as cifar_cnn
from mixjax.models.plain_cnn import mnist_cnn as mnist_cnn
from mixjax.models.pretrained import load_pretrained as load_pretrained
from mixjax.models.pretrained import save_pretrained as save_pretrained
from mixjax.models.resnet import resnet18 as resnet18
from mixjax.models.resnet import small_resnet as small_resnet
from mixjax.models.wide_resnets import preact_resnet18 as preact_resnet18
from mixjax.models.wide_resnets import wide_resnet as wide_resnet
from mixjax.models.wide_resnets import wide_resnet_28_10 as wide_resnet_28_10
