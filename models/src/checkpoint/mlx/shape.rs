//! Whether the tensors of a quantized module fit each other, and what they fit instead.
//!
//! Words and scales of a row determine the product of bits and group size. A product that other
//! settings have means that `config.json` tells of another quantization; any other is damage.

use super::{MlxTensors, Mode, Settings};
use crate::checkpoint::dtype::Dtype;
use crate::checkpoint::tensor::TensorView;
use crate::error::Error;

/// Bits of a word of codes.
const WORD_BITS: usize = 32;

/// Types of the scales and biases of affine weights.
const AFFINE_SCALES: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16];

/// Refuses tensors whose type is not that of their role.
pub(super) fn check_types(tensors: &MlxTensors<'_>, settings: Settings) -> Result<(), Error> {
    expect_type(&tensors.weight, &[Dtype::U32], "U32, words of codes")?;
    let scales = tensors.scales.dtype;
    let floats = AFFINE_SCALES.contains(&scales);
    match settings.mode {
        Mode::Affine if scales == Dtype::U8 => {
            let found = "scales of one byte, which mxfp4, mxfp8 and nvfp4 have";
            return Err(wrongly_quantized(&tensors.scales, settings, found));
        }
        Mode::Affine => expect_type(&tensors.scales, AFFINE_SCALES, "F32, F16, BF16")?,
        _ if floats => {
            let found = format!("scales of {scales}, which affine weights have");
            return Err(wrongly_quantized(&tensors.scales, settings, found));
        }
        _ => expect_type(&tensors.scales, &[Dtype::U8], "U8")?,
    }
    if let Some(biases) = &tensors.biases {
        if settings.mode != Mode::Affine {
            let found = "biases, which affine weights have";
            return Err(wrongly_quantized(biases, settings, found));
        }
        expect_type(biases, AFFINE_SCALES, "F32, F16, BF16")?;
    }
    match &tensors.global_scale {
        Some(scale) if settings.mode != Mode::Nvfp4 => {
            Err(wrongly_quantized(scale, settings, "a scale of the whole, which nvfp4 may have"))
        }
        Some(scale) => expect_type(scale, &[Dtype::F32], "F32"),
        None => Ok(()),
    }
}

/// Columns of the weight, whose tensors must have fitting shapes.
pub(super) fn cols(tensors: &MlxTensors<'_>, settings: Settings) -> Result<usize, Error> {
    let MlxTensors { weight, scales, biases, global_scale } = tensors;
    let (leading, words) = match weight.shape {
        [leading @ .., words] if !leading.is_empty() && weight.elements() > 0 => (leading, *words),
        shape => {
            let expected = "a matrix or a stack of them, none of them empty";
            return Err(wrong_shape(weight, expected, shape));
        }
    };
    let groups = match scales.shape {
        [rest @ .., groups] if rest == leading && *groups > 0 => *groups,
        shape => {
            let expected = format!("shape {leading:?} and groups, as {} has", weight.name);
            return Err(wrong_shape(scales, expected, shape));
        }
    };
    let cols = cols_of(words, groups, settings).ok_or_else(|| {
        if let Some(other) = other_settings(words, groups, settings.mode) {
            let found = format!("{words} words and {groups} scales a row, which fit {other}");
            return wrongly_quantized(weight, settings, found);
        }
        let cols = words * WORD_BITS / settings.bits;
        let expected = format!("{} scales a row of {cols} columns", cols / settings.group_size);
        wrong_shape(scales, expected, scales.shape)
    })?;
    if let Some(biases) = biases.filter(|biases| biases.shape != scales.shape) {
        let expected = format!("the shape of the scales, {:?}", scales.shape);
        return Err(wrong_shape(&biases, expected, biases.shape));
    }
    let matrices: usize = leading[..leading.len() - 1].iter().product();
    if let Some(scale) = global_scale.filter(|scale| scale.elements() != matrices) {
        let expected = format!("{matrices} numbers, one for each matrix of {}", weight.name);
        return Err(wrong_shape(&scale, expected, scale.shape));
    }
    Ok(cols)
}

/// Settings of `mode` with which a row has `cols` columns.
pub(super) fn settings_for(tensors: &MlxTensors<'_>, mode: Mode, cols: usize) -> Option<Settings> {
    let (words, groups) = (*tensors.weight.shape.last()?, *tensors.scales.shape.last()?);
    all_settings(mode).find(|settings| cols_of(words, groups, *settings) == Some(cols))
}

fn all_settings(mode: Mode) -> impl Iterator<Item = Settings> {
    mode.bits().iter().flat_map(move |bits| {
        let sizes = mode.group_sizes().iter();
        sizes.map(move |size| Settings { mode, bits: *bits, group_size: *size })
    })
}

/// Columns of a row of so many words and groups; `None` if they do not fit each other.
fn cols_of(words: usize, groups: usize, settings: Settings) -> Option<usize> {
    let cols = groups.checked_mul(settings.group_size)?;
    (words.checked_mul(WORD_BITS) == cols.checked_mul(settings.bits)).then_some(cols)
}

/// Other settings that a row of so many words and groups fits.
fn other_settings(words: usize, groups: usize, mode: Mode) -> Option<String> {
    let fitting: Vec<String> = all_settings(mode)
        .filter(|settings| cols_of(words, groups, *settings).is_some())
        .map(|settings| settings.to_string())
        .collect();
    (!fitting.is_empty()).then(|| fitting.join(" or "))
}

fn expect_type(
    tensor: &TensorView<'_>,
    allowed: &[Dtype],
    supported: &'static str,
) -> Result<(), Error> {
    if allowed.contains(&tensor.dtype) {
        return Ok(());
    }
    Err(Error::UnsupportedDtype {
        file: tensor.file.display().to_string(),
        tensor: tensor.name.to_string(),
        found: tensor.dtype.name(),
        supported,
    })
}

fn wrong_shape(tensor: &TensorView<'_>, expected: impl ToString, shape: &[usize]) -> Error {
    let (file, place) = (tensor.file.display(), format!("tensor {}", tensor.name));
    Error::format(file, place, expected, format!("shape {shape:?}"))
}

fn wrongly_quantized(tensor: &TensorView<'_>, settings: Settings, found: impl ToString) -> Error {
    Error::Quantization {
        file: tensor.file.display().to_string(),
        tensor: tensor.name.to_string(),
        expected: format!("{settings} as config.json says"),
        found: found.to_string(),
    }
}
