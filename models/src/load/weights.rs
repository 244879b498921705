//! Weights of a checkpoint on their way into layers: checked, packed, counted, reported.
//!
//! Every model is read twice by the same code. The first time nothing is packed: names, shapes and
//! types are verified and bytes counted, so that a checkpoint that does not fit is refused, and the
//! size of one that does is known, before any memory is taken.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};
use sconce_kernels::{DenseRows, DenseType, Matrix};

use super::part::{Part, Quantizing};
use super::progress::{LoadProgress, LoadStage};
use super::random::{self, RandomWeights};
use super::turn::Orientation;
use super::{Progress, report};
use crate::checkpoint::{Checkpoint, Conventions, RowSelection, Weight};
use crate::error::Error;
use crate::layers::decoder::WeightsSummary;
use crate::quantize::QuantizeFormat;
use crate::work::{Use, WeightsWork};

/// Takes each weight that a model needs once, and knows at the end which tensors were not taken.
pub(crate) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    /// Where the weights are, or would be.
    device: &'a Device,
    conventions: Conventions,
    /// Makes what no file has.
    random: Option<RandomWeights>,
    quantizing: Option<Quantizing>,
    /// `None` to check only: what is made then is empty.
    packing: Option<Packing<'a>>,
    /// Tensors that were not taken yet.
    left: BTreeSet<&'a str>,
    bytes: u64,
    parameters: u64,
    /// When what is read now will be used.
    used: Use,
    work: WeightsWork,
    /// Bytes of matrices in the file by the name of the packing they get.
    formats: BTreeMap<String, u64>,
}

/// Who hears of weights that are packed.
struct Packing<'a> {
    progress: &'a mut Progress<'a>,
    done: LoadProgress,
}

impl<'a> Weights<'a> {
    /// Verifies all tensors of `checkpoint` but those that the architecture `ignores`, and counts what
    /// they would take on `device`.
    pub(crate) fn check(
        checkpoint: &'a Checkpoint,
        ignores: &dyn Fn(&str) -> bool,
        device: &'a Device,
    ) -> Self {
        let conventions = checkpoint.conventions();
        let left = checkpoint.names().filter(|name| !ignores(name)).collect();
        Self {
            checkpoint,
            device,
            conventions,
            random: checkpoint.seed().map(|seed| RandomWeights { seed }),
            quantizing: None,
            packing: None,
            left,
            bytes: 0,
            parameters: 0,
            used: Use::default(),
            work: WeightsWork::default(),
            formats: BTreeMap::new(),
        }
    }

    /// As [`check`](Self::check), and packs them there.
    pub(crate) fn pack(
        checkpoint: &'a Checkpoint,
        ignores: &dyn Fn(&str) -> bool,
        device: &'a Device,
        progress: &'a mut Progress<'a>,
    ) -> Self {
        let mut done = LoadProgress::at(LoadStage::Weights);
        for tensor in checkpoint.tensors().filter(|tensor| !ignores(tensor.name)) {
            done.bytes_total += tensor.bytes.len() as u64;
            done.tensors_total += 1;
        }
        let packing = Some(Packing { progress, done });
        Self { packing, ..Self::check(checkpoint, ignores, device) }
    }

    /// Quantizes matrices to `format` where it is given; the model has `layers` layers.
    pub(crate) fn quantized(self, format: Option<QuantizeFormat>, layers: usize) -> Self {
        Self { quantizing: format.map(|format| Quantizing { format, layers }), ..self }
    }

    /// Runs `read` with weights that will be used as `used` says, not for every token.
    pub(crate) fn used<T>(&mut self, used: Use, read: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.used, used);
        let outcome = read(self);
        self.used = before;
        outcome
    }

    /// How the checkpoint writes down what can be written in several ways.
    pub(crate) fn conventions(&self) -> Conventions {
        self.conventions
    }

    /// Whether there is a weight of this canonical name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }

    /// A matrix, `[rows, cols]`, in the packing of the checkpoint.
    ///
    /// # Errors
    /// A weight that is missing, has another shape or type; [`Error::Cancelled`].
    pub(crate) fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        let mut matrices = self.split(name, &[rows, cols], [RowSelection::all()])?;
        Ok(matrices.pop().expect("one selection makes one matrix"))
    }

    /// The parts of a weight of shape `[.., rows, cols]`, one matrix for each selection of its rows:
    /// experts of a stack, projections that are stored as one.
    ///
    /// # Errors
    /// As for [`matrix`](Self::matrix).
    pub(crate) fn split(
        &mut self,
        name: &str,
        shape: &[usize],
        selections: impl IntoIterator<Item = RowSelection>,
    ) -> Result<Vec<Matrix>, Error> {
        let as_stored = |selection| (selection, Orientation::AsStored);
        self.split_oriented(name, shape, selections.into_iter().map(as_stored))
    }

    /// As [`split`](Self::split), with some of the parts turned.
    ///
    /// # Errors
    /// As for [`matrix`](Self::matrix).
    pub(crate) fn split_oriented(
        &mut self,
        name: &str,
        shape: &[usize],
        parts: impl IntoIterator<Item = (RowSelection, Orientation)>,
    ) -> Result<Vec<Matrix>, Error> {
        if let Some(random) = self.random {
            return self.split_random(random, (name, shape), parts);
        }
        let weight = self.take(name, shape)?;
        let mut matrices = Vec::new();
        let mut format = weight.format_name();
        for part in parts {
            let part = Part::new(&weight, part, self.quantizing)?;
            if let Some(packing) = part.packing() {
                format = packing.to_string();
            }
            let bytes = part.bytes(self.device)?;
            self.bytes += bytes;
            self.work.matrix(self.used, part.format(), bytes, part.elements());
            matrices.push(match &self.packing {
                Some(_) => part.pack(self.device)?,
                None => Matrix::pack_dense(&Nothing, &Device::Cpu)?,
            });
            self.report()?;
        }
        *self.formats.entry(format).or_default() += weight.bytes_in_file();
        self.took(&weight)?;
        Ok(matrices)
    }

    /// The same of a weight that no file has.
    fn split_random(
        &mut self,
        random: RandomWeights,
        (name, shape): (&str, &[usize]),
        parts: impl IntoIterator<Item = (RowSelection, Orientation)>,
    ) -> Result<Vec<Matrix>, Error> {
        let (cols, leading) = shape.split_last().map_or((0, shape), |(cols, rest)| (*cols, rest));
        let available = leading.iter().product();
        let mut matrices = Vec::new();
        for (index, (selection, orientation)) in parts.into_iter().enumerate() {
            let rows = selection.count(available).map_err(|rows| {
                let expected = format!("rows {} to {}", rows.start, rows.end);
                Error::format(self.checkpoint.path().display(), name, expected, available)
            })?;
            let part = random.part((name, index), [rows, cols], orientation);
            let bytes = part.bytes(self.device)?;
            self.bytes += bytes;
            self.parameters += part.elements();
            self.work.matrix(self.used, part.format(), bytes, part.elements());
            *self.formats.entry(random::FORMAT.to_owned()).or_default() += bytes;
            matrices.push(match &self.packing {
                Some(_) => part.pack(self.device)?,
                None => Matrix::pack_dense(&Nothing, &Device::Cpu)?,
            });
            self.report()?;
        }
        Ok(matrices)
    }

    /// A vector in f32, `[len]`.
    ///
    /// # Errors
    /// As for [`matrix`](Self::matrix).
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Tensor, Error> {
        self.vector_map(name, len, |value| value)
    }

    /// A vector in f32, `[len]`, of what `map` makes of each element.
    ///
    /// # Errors
    /// As for [`matrix`](Self::matrix).
    pub(crate) fn vector_map(
        &mut self,
        name: &str,
        len: usize,
        map: impl Fn(f32) -> f32,
    ) -> Result<Tensor, Error> {
        self.tensor(name, &[len], |mut values| {
            values.iter_mut().for_each(|value| *value = map(*value));
            (values, vec![len])
        })
    }

    /// A weight of shape `shape` in f32, as the values and the shape that `make` makes of its values
    /// in row-major order. For small tensors that are not multiplied as matrices.
    ///
    /// # Errors
    /// As for [`matrix`](Self::matrix).
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        make: impl FnOnce(Vec<f32>) -> (Vec<f32>, Vec<usize>),
    ) -> Result<Tensor, Error> {
        if let Some(random) = self.random {
            return self.tensor_random(random, (name, shape), make);
        }
        let weight = self.take(name, shape)?;
        let bytes = (weight.elements() * size_of::<f32>()) as u64;
        self.bytes += bytes;
        self.work.tensor(bytes);
        let tensor = match &self.packing {
            Some(_) => {
                let (values, shape) = make(weight.to_f32()?);
                Tensor::from_vec(values, shape, self.device)?
            }
            None => {
                weight.expect_readable()?;
                Tensor::from_vec(Vec::<f32>::new(), 0, &Device::Cpu)?
            }
        };
        self.took(&weight)?;
        Ok(tensor)
    }

    /// The same of a tensor that no file has.
    fn tensor_random(
        &mut self,
        random: RandomWeights,
        (name, shape): (&str, &[usize]),
        make: impl FnOnce(Vec<f32>) -> (Vec<f32>, Vec<usize>),
    ) -> Result<Tensor, Error> {
        let elements = shape.iter().product::<usize>();
        let bytes = (elements * size_of::<f32>()) as u64;
        self.bytes += bytes;
        self.parameters += elements as u64;
        self.work.tensor(bytes);
        Ok(match &self.packing {
            Some(_) => {
                let (values, shape) = make(random.values(name, elements));
                Tensor::from_vec(values, shape, self.device)?
            }
            None => Tensor::from_vec(Vec::<f32>::new(), 0, &Device::Cpu)?,
        })
    }

    /// Verifies that nothing was left over.
    ///
    /// # Errors
    /// [`Error::UnexpectedTensor`]: a model that ignores weights is not the one in the checkpoint.
    pub(crate) fn finish(self, architecture: &str) -> Result<WeightsSummary, Error> {
        if let Some(name) = self.left.first() {
            return Err(Error::UnexpectedTensor {
                file: self.checkpoint.path().display().to_string(),
                tensor: (*name).to_string(),
                architecture: architecture.to_string(),
            });
        }
        let most = self.formats.into_iter().max_by_key(|(_, bytes)| *bytes);
        let format = most.map_or_else(|| "none".to_string(), |(name, _)| name);
        let Self { bytes, parameters, work, .. } = self;
        Ok(WeightsSummary { bytes, parameters, work, format })
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Weight<'a>, Error> {
        self.report()?;
        let weight = self.checkpoint.weight(name)?;
        weight.expect_shape(shape)?;
        Ok(weight)
    }

    fn took(&mut self, weight: &Weight<'a>) -> Result<(), Error> {
        self.parameters += weight.elements() as u64;
        let mut parts = 0;
        for part in weight.parts() {
            self.left.remove(part);
            parts += 1;
        }
        if let Some(packing) = &mut self.packing {
            packing.done.bytes_done += weight.bytes_in_file();
            packing.done.tensors_done += parts;
        }
        self.report()
    }

    fn report(&mut self) -> Result<(), Error> {
        match &mut self.packing {
            Some(packing) => report(packing.progress, packing.done),
            None => Ok(()),
        }
    }
}

/// The source of a matrix without rows, in place of one that is only checked.
struct Nothing;

impl DenseRows for Nothing {
    fn rows(&self) -> usize {
        0
    }

    fn cols(&self) -> usize {
        0
    }

    fn format(&self) -> DenseType {
        DenseType::F32
    }

    fn read_row(&self, _: usize, _: &mut [f32]) {}
}
