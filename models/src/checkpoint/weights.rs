//! Which tensors of a checkpoint belong together: every weight by its canonical name.

use super::dtype::Dtype;
use super::fp8::{Fp8Weight, SCALE_SUFFIX};
use super::mlx::{MlxTensors, MlxWeight, Mode};
use super::quantization::{Modules, Quantization};
use super::tensor::TensorView;
use super::weight::{Packing, Weight};
use super::{Checkpoint, TensorEntry};
use crate::error::Error;

/// What the name of a module has after it for its weight, and for what MLX stores beside that.
const WEIGHT: &str = ".weight";
const SCALES: &str = ".scales";
const BIASES: &str = ".biases";
const GLOBAL_SCALE: &str = ".global_scale";

impl Checkpoint {
    /// The weight of this canonical name: `model.norm.weight`, or, where a checkpoint has bare
    /// parameters, `model.layers.0.mlp.experts.gate_up_proj`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] if it, or a tensor that belongs to it, is not there; those of
    /// tensors that do not fit each other or the configuration: [`Error::Format`],
    /// [`Error::Quantization`], [`Error::UnsupportedDtype`], [`Error::Config`].
    pub fn weight(&self, name: &str) -> Result<Weight<'_>, Error> {
        match self.tensors.get_key_value(name) {
            Some((name, entry)) => self.weight_of(name, entry),
            None => Err(self.missing(name)),
        }
    }

    /// All weights, in order of name; the tensors of scales that belong to one are no weights of
    /// their own.
    pub fn weights(&self) -> impl Iterator<Item = Result<Weight<'_>, Error>> {
        let entries = self.tensors.iter().filter(|(name, _)| self.whole_of(name).is_none());
        entries.map(|(name, entry)| self.weight_of(name, entry))
    }

    /// Elements of all weights. Those that cannot be put together count as their tensors are.
    pub fn parameters(&self) -> u64 {
        let entries = self.tensors.iter().filter(|(name, _)| self.whole_of(name).is_none());
        let elements = entries.map(|(name, entry)| match self.weight_of(name, entry) {
            Ok(weight) => weight.elements(),
            Err(_) => self.view(name, entry).elements(),
        });
        elements.map(|elements| elements as u64).sum()
    }

    /// The name of the weight that the tensor `name` is a part of, unless it is one itself.
    pub(super) fn whole_of(&self, name: &str) -> Option<String> {
        let whole = match self.quantization {
            Quantization::Mlx(_) => {
                let suffixes = [SCALES, BIASES, GLOBAL_SCALE];
                let module = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix))?;
                self.has(&format!("{module}{SCALES}")).then(|| format!("{module}{WEIGHT}"))?
            }
            Quantization::Fp8 { .. } => name.strip_suffix(SCALE_SUFFIX)?.to_string(),
            Quantization::None | Quantization::Foreign(_) => return None,
        };
        self.has(&whole).then_some(whole)
    }

    /// Refuses scales of MLX that belong to no weight: the weight would be missed under its name.
    ///
    /// # Errors
    /// [`Error::Format`] naming the tensor of the scales.
    pub(super) fn refuse_lone_scales(&self) -> Result<(), Error> {
        let Quantization::Mlx(_) = self.quantization else { return Ok(()) };
        for tensor in self.tensors() {
            let Some(module) = tensor.name.strip_suffix(SCALES) else { continue };
            let weight = format!("{module}{WEIGHT}");
            if !self.has(&weight) {
                let (file, place) = (tensor.file.display(), format!("tensor {}", tensor.name));
                let expected = format!("{weight}, to which it belongs");
                return Err(Error::format(file, place, expected, "no such tensor"));
            }
        }
        Ok(())
    }

    fn weight_of<'a>(&'a self, name: &'a str, entry: &'a TensorEntry) -> Result<Weight<'a>, Error> {
        let tensor = self.view(name, entry);
        self.quantization.expect_known(&self.config)?;
        let packing = match &self.quantization {
            Quantization::Mlx(modules) => self.mlx(tensor, modules)?,
            Quantization::Fp8 { block } => self.fp8(tensor, *block)?,
            Quantization::None | Quantization::Foreign(_) => {
                self.expect_plain(&tensor)?;
                Packing::Tensor(tensor)
            }
        };
        Ok(Weight::new(tensor, packing))
    }

    fn mlx<'a>(&'a self, weight: TensorView<'a>, modules: &Modules) -> Result<Packing<'a>, Error> {
        let Some(module) = weight.name.strip_suffix(WEIGHT) else {
            return Ok(Packing::Tensor(weight));
        };
        let part = |suffix: &str| self.part(&format!("{module}{suffix}"));
        let Some(scales) = part(SCALES) else {
            return match weight.dtype {
                Dtype::U32 => Err(self.missing(&format!("{module}{SCALES}"))),
                _ => Ok(Packing::Tensor(weight)),
            };
        };
        let Some(settings) = modules.settings(module) else {
            return Err(Error::Quantization {
                file: weight.file.display().to_string(),
                tensor: weight.name.to_string(),
                expected: format!("plain numbers as {} says", self.config.file()),
                found: "scales beside it".to_string(),
            });
        };
        let (biases, global_scale) = (part(BIASES), part(GLOBAL_SCALE));
        if settings.mode == Mode::Affine && biases.is_none() {
            return Err(self.missing(&format!("{module}{BIASES}")));
        }
        let tensors = MlxTensors { weight, scales, biases, global_scale };
        Ok(Packing::Mlx(Box::new(MlxWeight::new(tensors, settings)?)))
    }

    fn fp8<'a>(
        &'a self,
        weight: TensorView<'a>,
        block: Option<[usize; 2]>,
    ) -> Result<Packing<'a>, Error> {
        if weight.dtype != Dtype::F8_E4M3 {
            return Ok(Packing::Tensor(weight));
        }
        let name = format!("{}{SCALE_SUFFIX}", weight.name);
        let scales = self.part(&name).ok_or_else(|| self.missing(&name))?;
        Ok(Packing::Fp8(Fp8Weight::new(weight, scales, block)?))
    }

    /// Refuses packed tensors where the configuration tells of no packing.
    fn expect_plain(&self, tensor: &TensorView<'_>) -> Result<(), Error> {
        let module = tensor.name.strip_suffix(WEIGHT);
        let packed = tensor.dtype == Dtype::U32
            && module.is_some_and(|module| self.has(&format!("{module}{SCALES}")));
        if packed {
            let expected = format!("bits and group_size of tensor {}", tensor.name);
            return Err(self.config.error("quantization", expected, "nothing"));
        }
        if tensor.dtype == Dtype::F8_E4M3 && self.has(&format!("{}{SCALE_SUFFIX}", tensor.name)) {
            let expected = format!("the block size of the scales of tensor {}", tensor.name);
            return Err(self.config.error("quantization_config", expected, "nothing"));
        }
        Ok(())
    }

    fn part(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensors.get_key_value(name).map(|(name, entry)| self.view(name, entry))
    }
}
