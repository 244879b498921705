//! The writer: a checkpoint of full precision into a directory in the format of MLX, which MLX-LM
//! and this crate load.
//!
//! Rows are read, quantized and written a slab at a time on all cores, so memory stays at some
//! megabytes beside what the system caches of the files.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sconce_kernels::{DenseRows, DenseType, Pool};
use serde_json::{Map, Value, json};

use super::directory::OutputDirectory;
use super::layout::{self, Layout, Output};
use super::rows::QuantizedRows;
use super::shard::{ShardWriter, TensorSpec};
use super::{QuantizeFormat, config, element};
use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::Error;

/// Bytes of a file after which the next one begins. A weight is never divided, so one that is larger
/// has a file of its own.
pub const SHARD_BYTES_MAX: u64 = 4 << 30;

/// Bytes of the values, in f32, that are quantized together: between two reports of progress.
const SLAB_BYTES: usize = 16 << 20;

/// How far a quantization has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuantizeProgress {
    /// Bytes of the source that were read.
    pub bytes_done: u64,
    /// Bytes of the source that will be read.
    pub bytes_total: u64,
    /// Weights that were written.
    pub tensors_done: usize,
    /// Weights that will be written; a stack of experts is one.
    pub tensors_total: usize,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizeSummary {
    /// Weights; a stack of experts is one.
    pub tensors: usize,
    /// Weights that are quantized.
    pub quantized: usize,
    /// Bytes of the source that they came from.
    pub bytes_before: u64,
    /// Bytes of all weights as written.
    pub bytes_after: u64,
    /// Files of weights.
    pub shards: usize,
    /// Canonical names of tensors that are not in the directory: vision, extra heads for
    /// speculation, the second copy of tied embeddings.
    pub left_out: Vec<String>,
}

/// Quantizes the Hugging Face directory `source` (F32, F16 or BF16) to `format` into the new
/// directory `output`, which appears when it is complete.
///
/// `progress` hears of every slab; [`ControlFlow::Break`] stops and removes what was written.
///
/// # Errors
/// A source that is no such directory, is damaged, or is quantized already; an architecture that
/// has no known layout; values that are not finite; an `output` that exists; [`Error::Io`];
/// [`Error::Cancelled`].
pub fn quantize(
    source: &Path,
    output: &Path,
    format: QuantizeFormat,
    progress: &mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>,
) -> Result<QuantizeSummary, Error> {
    quantize_sharded(source, output, format, SHARD_BYTES_MAX, progress)
}

/// As [`quantize`], with files of another size.
fn quantize_sharded(
    source: &Path,
    output: &Path,
    format: QuantizeFormat,
    shard_bytes_max: u64,
    progress: &mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>,
) -> Result<QuantizeSummary, Error> {
    let checkpoint = open(source)?;
    let config = source_config(source)?;
    let tied = is_tied(&checkpoint)?;
    let model_type = match config.get("model_type") {
        Some(Value::String(name)) => name,
        _ => checkpoint.config().model_type()?,
    };
    let Layout { outputs, left_out } = layout::plan(&checkpoint, model_type, tied, format)?;

    let directory = OutputDirectory::create(output)?;
    let shards = shards(&outputs, shard_bytes_max);
    let mut run = Run { checkpoint: &checkpoint, done: total(&outputs), progress };
    let mut weight_map = Map::new();
    let mut bytes_after = 0;
    for (number, shard) in shards.iter().enumerate() {
        let file = shard_name(number, shards.len());
        let specs: Vec<TensorSpec> = shard.iter().flat_map(tensors).collect();
        for spec in &specs {
            bytes_after += spec.bytes();
            weight_map.insert(spec.name.clone(), json!(file));
        }
        run.write_shard(&directory.file(&file), &specs, shard)?;
    }
    weight_map.sort_keys();
    let index = json!({"metadata": {"total_size": bytes_after}, "weight_map": weight_map});
    directory.write("model.safetensors.index.json", &pretty(&index))?;
    let packed: Vec<_> = outputs
        .iter()
        .filter_map(|output| Some((module(&output.name).to_string(), output.packing?)))
        .collect();
    directory.write("config.json", &pretty(&config::quantized(&config, tied, format, &packed)))?;
    directory.copy_from(source)?;
    directory.publish()?;
    Ok(QuantizeSummary {
        tensors: outputs.len(),
        quantized: packed.len(),
        bytes_before: run.done.bytes_total,
        bytes_after,
        shards: shards.len(),
        left_out,
    })
}

fn open(source: &Path) -> Result<Checkpoint, Error> {
    let checkpoint = Checkpoint::open(source)?;
    match checkpoint.gguf() {
        None => Ok(checkpoint),
        Some(_) => Err(Error::NotACheckpoint {
            path: source.to_path_buf(),
            expected: "a directory with config.json and safetensors files",
            found: "a GGUF file".into(),
        }),
    }
}

/// The `config.json` of `source` as it is.
fn source_config(source: &Path) -> Result<Map<String, Value>, Error> {
    let path = source.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let file = path.display();
    let config: Map<String, Value> = serde_json::from_str(&text)
        .map_err(|error| Error::format(&file, "file", "a JSON object", error))?;
    for key in ["quantization", "quantization_config"] {
        let nested = config.get("text_config").and_then(|text| text.get(key));
        let found = [config.get(key), nested].into_iter().flatten().find(|it| !it.is_null());
        if let Some(found) = found {
            return Err(Error::AlreadyQuantized {
                file: file.to_string(),
                place: format!("key {key}"),
                found: crate::checkpoint::config::excerpt(found),
            });
        }
    }
    Ok(config)
}

/// Whether the embeddings are the head: what the configuration says, or else what is there.
fn is_tied(checkpoint: &Checkpoint) -> Result<bool, Error> {
    let head = checkpoint.has("lm_head.weight");
    match checkpoint.config().flag("tie_word_embeddings")? {
        Some(false) if !head => checkpoint.tensor("lm_head.weight").map(|_| false),
        flag => Ok(flag.unwrap_or(!head)),
    }
}

/// What will have been done in the end.
fn total(outputs: &[Output]) -> QuantizeProgress {
    QuantizeProgress {
        bytes_total: outputs.iter().map(source_bytes).sum(),
        tensors_total: outputs.len(),
        ..QuantizeProgress::default()
    }
}

fn source_bytes(output: &Output) -> u64 {
    (output.shape.iter().product::<usize>() * element::width(output.dense_type)) as u64
}

/// Divides weights into files, in order.
fn shards(outputs: &[Output], bytes_max: u64) -> Vec<&[Output]> {
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, output) in outputs.iter().enumerate() {
        let size: u64 = tensors(output).iter().map(TensorSpec::bytes).sum();
        if index > start && bytes + size > bytes_max {
            shards.push(&outputs[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    shards.push(&outputs[start..]);
    shards
}

fn shard_name(number: usize, count: usize) -> String {
    match count {
        1 => "model.safetensors".to_string(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    }
}

/// The path of the module that a weight belongs to.
fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// The tensors of a weight: itself, or codes, scales and biases.
fn tensors(output: &Output) -> Vec<TensorSpec> {
    let plain = match output.dense_type {
        DenseType::F32 => Dtype::F32,
        DenseType::Bf16 => Dtype::BF16,
        DenseType::F16 => Dtype::F16,
    };
    let with_cols = |name: String, dtype, cols| {
        let mut shape = output.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = cols;
        }
        TensorSpec { name, dtype, shape }
    };
    let cols = output.shape.last().copied().unwrap_or(1);
    let Some(packing) = output.packing else {
        return vec![with_cols(output.name.clone(), plain, cols)];
    };
    let (module, groups) = (module(&output.name), cols / packing.group_size);
    let words = packing.code_bytes(cols) / size_of::<u32>();
    let mut tensors = vec![with_cols(format!("{module}.weight"), Dtype::U32, words)];
    if packing.bias_bytes(cols, output.dense_type) > 0 {
        tensors.push(with_cols(format!("{module}.scales"), plain, groups));
        tensors.push(with_cols(format!("{module}.biases"), plain, groups));
    } else {
        tensors.push(with_cols(format!("{module}.scales"), Dtype::U8, groups));
    }
    tensors
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A quantization under way.
struct Run<'a> {
    checkpoint: &'a Checkpoint,
    done: QuantizeProgress,
    progress: &'a mut dyn FnMut(QuantizeProgress) -> ControlFlow<()>,
}

impl Run<'_> {
    fn write_shard(
        &mut self,
        path: &Path,
        specs: &[TensorSpec],
        outputs: &[Output],
    ) -> Result<(), Error> {
        let mut shard = ShardWriter::create(path, specs)?;
        let mut first = 0;
        for output in outputs {
            let rows = output.recipe.open(self.checkpoint)?;
            self.write_weight(&mut shard, first, output, &*rows)?;
            first += tensors(output).len();
            self.done.tensors_done += 1;
        }
        shard.finish()?;
        self.report()
    }

    /// Writes a weight, whose tensors are numbered from `first`.
    fn write_weight(
        &mut self,
        shard: &mut ShardWriter,
        first: usize,
        output: &Output,
        rows: &dyn DenseRows,
    ) -> Result<(), Error> {
        let quantized = output.packing.and_then(|packing| QuantizedRows::new(rows, packing));
        let row_bytes = rows.cols() * element::width(rows.format());
        let sizes = quantized.as_ref().map_or([row_bytes, 0, 0], QuantizedRows::row_bytes);
        let stride: usize = sizes.iter().sum();
        if stride == 0 {
            return Ok(());
        }
        let slab_rows = (SLAB_BYTES / (rows.cols() * size_of::<f32>())).max(1);
        let (mut slab, mut part) = (Vec::new(), Vec::new());
        for start in (0..rows.rows()).step_by(slab_rows) {
            let count = slab_rows.min(rows.rows() - start);
            slab.resize(count * stride, 0);
            let finite = AtomicBool::new(true);
            Pool::global().run_chunks(&mut slab, stride, |row, bytes| match &quantized {
                Some(rows) => {
                    if rows.pack_row(start + row, bytes).is_err() {
                        finite.store(false, Ordering::Relaxed);
                    }
                }
                None => copy_row(rows, start + row, bytes),
            });
            if !finite.into_inner() {
                let (file, place) = (self.checkpoint.path().display(), &output.name);
                let found = "infinity or not a number";
                return Err(Error::format(file, format!("tensor {place}"), "finite values", found));
            }
            let mut from = 0;
            for (index, size) in sizes.into_iter().enumerate().filter(|(_, size)| *size > 0) {
                part.clear();
                slab.chunks_exact(stride).for_each(|row| part.extend(&row[from..from + size]));
                shard.write(first + index, (start * size) as u64, &part)?;
                from += size;
            }
            self.done.bytes_done += (count * row_bytes) as u64;
            self.report()?;
        }
        Ok(())
    }

    fn report(&mut self) -> Result<(), Error> {
        match (self.progress)(self.done) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}

/// Copies a row that keeps its type.
fn copy_row(rows: &dyn DenseRows, row: usize, bytes: &mut [u8]) {
    let mut values = vec![0.0; rows.cols()];
    rows.read_row(row, &mut values);
    for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(element::width(rows.format()))) {
        element::store(bytes, rows.format(), *value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn files_are_bounded_and_all_of_them_are_indexed() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama_f32");
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("model");
        const LIMIT: u64 = 8 << 10;
        let mut progress = |_| ControlFlow::Continue(());
        let format = QuantizeFormat::Mxfp8;
        let summary = quantize_sharded(&source, &output, format, LIMIT, &mut progress).unwrap();
        assert!(summary.shards > 2, "{summary:?}");
        let files: BTreeSet<String> = std::fs::read_dir(&output)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".safetensors"))
            .collect();
        let expected = (1..=summary.shards)
            .map(|number| format!("model-{number:05}-of-{:05}.safetensors", summary.shards));
        assert_eq!(files, expected.collect());

        let whole = folder.path().join("whole");
        quantize(&source, &whole, format, &mut progress).unwrap();
        let (parts, whole) = (Checkpoint::open(&output), Checkpoint::open(&whole));
        let (parts, whole) = (parts.unwrap(), whole.unwrap());
        assert!(parts.names().eq(whole.names()));
        for (part, tensor) in parts.tensors().zip(whole.tensors()) {
            assert_eq!(part.bytes, tensor.bytes, "{}", part.name);
        }
    }
}
