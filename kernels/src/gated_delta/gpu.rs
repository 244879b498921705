//! `gated_delta` on GPUs: a kernel for the sequential form, two for the chunked one, and the lists
//! that tell them of segments and of states to keep.

use candle_core::Tensor;

use super::{Form, GatedDeltaInputs, KeyHeads, Shape};
use crate::error::{Error, Result};
use crate::gpu::{Call, Gpu, Grid, Language, scratch};
use crate::recurrence::{Recurrence, RecurrentSegment};

const OP: &str = "gated_delta";
/// Widest key head: its state's columns must fit into registers.
const KEY_DIM_MAX: usize = 256;
/// Columns of a state that a warp has in the sequential form.
const SCAN_COLUMNS: usize = 16;
/// Most warps of a block in the sequential form.
const SCAN_WARPS_MAX: usize = 8;
/// Blocks below which they are made smaller: about as many as a GPU has multiprocessors.
const SCAN_BLOCKS_MIN: usize = 128;
/// Tokens of a chunk.
const CHUNK: usize = 64;
/// Chunks that are prepared together, of all segments. What is prepared of 64 chunks of 16 key heads
/// of 128 and 32 value heads takes 132 MiB of scratch memory, see [`scratch_words`].
const CHUNKS_MAX: usize = 64;
/// Rows and columns of an operand's block of tensor cores; widths are filled up to it.
const BLOCK: usize = 16;

/// The operands of a call.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    /// `[capacity, value_heads * value_dim]`.
    pub(super) out: &'a Tensor,
    /// What is read.
    pub(super) inputs: GatedDeltaInputs<'a>,
    /// `[slots, value_heads, key_dim, value_dim]`.
    pub(super) state: &'a Tensor,
    /// Sizes of them.
    pub(super) shape: Shape,
}

/// Advances the states of every segment; the operands have been checked.
///
/// # Errors
/// Key heads wider than 256; a kernel that cannot be started or fails.
pub(super) fn gated_delta(
    gpu: Gpu,
    operands: Operands<'_>,
    recurrence: Recurrence<'_>,
    form: Form,
) -> Result<()> {
    let key_dim = operands.shape.key_dim;
    if key_dim > KEY_DIM_MAX {
        return Err(Error::Shape {
            op: OP,
            operand: "state",
            expected: format!("key heads of at most {KEY_DIM_MAX} on a GPU"),
            found: key_dim.to_string(),
        });
    }
    match form {
        Form::Sequential => sequential(gpu, operands, recurrence),
        Form::Chunked => {
            let parts: Vec<Part> = parts(recurrence.segments);
            rounds(&parts, |round| chunked(gpu, operands, recurrence, round))
        }
    }
}

/// Consecutive tokens of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// Index of the segment.
    index: usize,
    segment: RecurrentSegment,
    /// Tokens of the segment before it.
    done: usize,
    /// Its own tokens.
    len: usize,
}

/// The segments that have tokens, whole.
fn parts(segments: &[RecurrentSegment]) -> Vec<Part> {
    let part = |(index, segment): (usize, &RecurrentSegment)| Part {
        index,
        segment: *segment,
        done: 0,
        len: segment.len,
    };
    segments.iter().enumerate().map(part).filter(|part| part.len > 0).collect()
}

/// Cuts parts into rounds of at most [`CHUNKS_MAX`] chunks, in which all of them advance alike.
fn rounds(parts: &[Part], mut run: impl FnMut(&[Part]) -> Result<()>) -> Result<()> {
    for parts in parts.chunks(CHUNKS_MAX) {
        let most = CHUNKS_MAX / parts.len() * CHUNK;
        let longest = parts.iter().map(|part| part.len).max().unwrap_or(0);
        for done in (0..longest).step_by(most) {
            let cut = |part: &Part| Part { done, len: most.min(part.len - done), ..*part };
            let round: Vec<Part> = parts.iter().filter(|part| part.len > done).map(cut).collect();
            run(&round)?;
        }
    }
    Ok(())
}

/// What the kernels are told of the parts and of states to keep.
struct Lists {
    /// Of each part its first row, tokens, slot, first chunk (in the chunked form), first stop and end
    /// of its stops.
    segments: Vec<u32>,
    /// Of each stop the tokens of the part before it, and the slot; in the order of the tokens.
    stops: Vec<u32>,
    /// Of each chunk its first row and its tokens.
    chunks: Vec<u32>,
}

impl Lists {
    fn new(parts: &[Part], recurrence: Recurrence<'_>, form: Form) -> Self {
        let mut lists = Self { segments: Vec::new(), stops: Vec::new(), chunks: Vec::new() };
        for part in parts {
            // Rows and slots were checked to lie within tensors; those hold fewer than 2^32 rows.
            let first_row = (part.segment.first_row + part.done) as u32;
            lists.segments.extend([first_row, part.len as u32, part.segment.slot]);
            if form == Form::Chunked {
                lists.segments.push(lists.chunks.len() as u32 / 2);
                for start in (0..part.len).step_by(CHUNK) {
                    let len = CHUNK.min(part.len - start);
                    lists.chunks.extend([first_row + start as u32, len as u32]);
                }
            }
            lists.segments.push(lists.stops.len() as u32 / 2);
            lists.add_stops(part, recurrence);
            lists.segments.push(lists.stops.len() as u32 / 2);
        }
        lists
    }

    fn add_stops(&mut self, part: &Part, recurrence: Recurrence<'_>) {
        let own = recurrence.emits.iter().filter(|emit| emit.segment == part.index);
        let inside = own.filter(|emit| emit.offset > part.done);
        let inside = inside.filter(|emit| emit.offset <= part.done + part.len);
        let mut stops: Vec<_> =
            inside.map(|emit| [(emit.offset - part.done) as u32, emit.slot]).collect();
        stops.sort_unstable();
        self.stops.extend(stops.into_iter().flatten());
    }
}

/// The variant of a kernel for key heads of some width.
fn variant(key_dim: usize, kernels: [&'static str; 3]) -> &'static str {
    match key_dim {
        0..=64 => kernels[0],
        65..=128 => kernels[1],
        _ => kernels[2],
    }
}

fn sequential(gpu: Gpu, operands: Operands<'_>, recurrence: Recurrence<'_>) -> Result<()> {
    let Operands { out, inputs, state, shape } = operands;
    let parts = parts(recurrence.segments);
    let lists = Lists::new(&parts, recurrence, Form::Sequential);
    let mut call = Call::new(OP, gpu);
    call.write::<f32>("out", out)?.write::<f32>("state", state)?;
    read_inputs(&mut call, inputs)?;
    call.list(&lists.segments)?.list(&lists.stops)?;
    add_sizes(&mut call, &shape)?;
    let fours = [2 * shape.key_heads * shape.key_dim, shape.value_dim];
    let starts = [out, state, inputs.qkv].map(|tensor| tensor.layout().start_offset());
    let wide = fours.iter().chain(&starts).all(|size| size.is_multiple_of(4));
    call.flag(wide);
    let warps = shape.value_dim.div_ceil(SCAN_COLUMNS);
    let heads = parts.len() * shape.value_heads;
    let most = if heads < SCAN_BLOCKS_MIN { 2 } else { SCAN_WARPS_MAX };
    let of_block = warps.min(most);
    let blocks = [warps.div_ceil(of_block), shape.value_heads, parts.len()];
    let kernel = variant(
        shape.key_dim,
        ["gated_delta_scan_64", "gated_delta_scan_128", "gated_delta_scan_256"],
    );
    // SAFETY: the parameters of the kernel; segments, stops and their slots lie within the tensors.
    unsafe { call.launch(kernel, Grid::of(blocks, 32 * of_block as u32)) }
}

fn chunked(
    gpu: Gpu,
    operands: Operands<'_>,
    recurrence: Recurrence<'_>,
    parts: &[Part],
) -> Result<()> {
    let Operands { out, inputs, state, shape } = operands;
    let lists = Lists::new(parts, recurrence, Form::Chunked);
    let chunks = lists.chunks.len() / 2;
    let words = scratch(OP, out.device(), scratch_words(chunks, &shape))?;
    let mut call = Call::new(OP, gpu);
    call.write::<u32>("scratch", &words)?;
    read_inputs(&mut call, inputs)?;
    call.list(&lists.chunks)?.size("chunks", chunks)?;
    add_sizes(&mut call, &shape)?;
    // SAFETY: the parameters of the kernel; chunks lie within the tensors, and the scratch memory is as
    // large as what they are made to.
    unsafe {
        let grid = Grid::of([shape.key_heads, chunks, 1], 256);
        call.launch("gated_delta_prepare", grid)?;
    }
    drop(call);
    let mut call = Call::new(OP, gpu);
    call.write::<f32>("out", out)?.write::<f32>("state", state)?;
    call.read::<u32>("scratch", &words)?.read::<f32>("qkv", inputs.qkv)?;
    call.list(&lists.segments)?.list(&lists.stops)?.size("chunks", chunks)?;
    add_sizes(&mut call, &shape)?;
    let (columns, shared) = match gpu.language() {
        Language::Cuda => (32, shared_bytes(shape.key_dim)),
        Language::Metal => (16, 0),
    };
    let blocks = [shape.value_dim.div_ceil(columns), shape.value_heads, parts.len()];
    let kernel = variant(
        shape.key_dim,
        ["gated_delta_chunks_64", "gated_delta_chunks_128", "gated_delta_chunks_256"],
    );
    // SAFETY: the parameters of the kernel; segments, stops and their slots lie within the tensors, and
    // the kernel before has prepared their chunks.
    unsafe { call.launch(kernel, Grid::of(blocks, 128).with_shared(shared)) }
}

/// Words of what is prepared: of each chunk and key head queries and keys, of each chunk and value head
/// two squares and sums of 64 bits.
fn scratch_words(chunks: usize, shape: &Shape) -> usize {
    let rows = 2 * CHUNK * shape.key_dim.next_multiple_of(BLOCK);
    let squares = 2 * CHUNK * CHUNK + 2 * CHUNK;
    chunks * (shape.key_heads * rows + shape.value_heads * squares)
}

/// Dynamic shared memory of the second kernel in CUDA: as first operands 32 columns of the state (or of
/// what is written) and of a chunk's values, the chunk's keys, and of each of four warps eight blocks
/// that are on their way; four bytes for an element. 88 KiB for key heads of 128.
fn shared_bytes(key_dim: usize) -> usize {
    let key_dim = key_dim.next_multiple_of(BLOCK);
    4 * (32 * (key_dim.max(CHUNK) + CHUNK) + CHUNK * key_dim + 4 * 8 * BLOCK * BLOCK)
}

fn read_inputs<'a>(call: &mut Call<'a>, inputs: GatedDeltaInputs<'a>) -> Result<()> {
    let GatedDeltaInputs { qkv, a, b, rate, dt_bias } = inputs;
    call.read::<f32>("qkv", qkv)?.read::<f32>("a", a)?.read::<f32>("b", b)?;
    call.read::<f32>("rate", rate)?.read::<f32>("dt_bias", dt_bias)?;
    Ok(())
}

fn add_sizes(call: &mut Call<'_>, shape: &Shape) -> Result<()> {
    call.size("key_heads", shape.key_heads)?.size("value_heads", shape.value_heads)?;
    call.size("key_dim", shape.key_dim)?.size("value_dim", shape.value_dim)?;
    call.flag(shape.head_map == KeyHeads::Tiled);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recurrence::Emit;

    fn segment(first_row: usize, len: usize, slot: u32) -> RecurrentSegment {
        RecurrentSegment { first_row, len, slot }
    }

    #[test]
    fn rounds_cover_every_token_once_within_their_bound() {
        for lens in [vec![0], vec![1, 0, 4097], vec![5000; 3], vec![65; 200], vec![100_000, 7]] {
            let segments: Vec<_> = lens.iter().map(|len| segment(0, *len, 0)).collect();
            let mut done = vec![0; lens.len()];
            rounds(&parts(&segments), |round| {
                let chunks: usize = round.iter().map(|part| part.len.div_ceil(CHUNK)).sum();
                assert!(!round.is_empty() && chunks <= CHUNKS_MAX);
                for part in round {
                    assert!(part.done == done[part.index] && part.len > 0);
                    assert!(part.done.is_multiple_of(CHUNK));
                    done[part.index] += part.len;
                }
                Ok(())
            })
            .unwrap();
            assert_eq!(done, lens);
        }
    }

    #[test]
    fn stops_are_in_order_and_belong_to_the_part_that_reaches_them() {
        let segments = [segment(3, 300, 7)];
        let emit = |offset, slot| Emit { segment: 0, offset, slot };
        let emits = [emit(300, 1), emit(64, 2), emit(65, 3), emit(10, 4)];
        let recurrence = Recurrence { segments: &segments, emits: &emits };
        let whole = parts(&segments)[0];
        let first = Part { len: 64, ..whole };
        let lists = Lists::new(&[first], recurrence, Form::Chunked);
        assert_eq!(lists.segments, [3, 64, 7, 0, 0, 2]);
        assert_eq!(lists.stops, [10, 4, 64, 2]);
        let rest = Part { done: 64, len: 236, ..whole };
        let lists = Lists::new(&[rest], recurrence, Form::Chunked);
        assert_eq!(lists.stops, [1, 3, 236, 1]);
        assert_eq!(lists.chunks, [67, 64, 131, 64, 195, 64, 259, 44]);
        let lists = Lists::new(&[whole], recurrence, Form::Sequential);
        assert_eq!(lists.segments, [3, 300, 7, 0, 4]);
    }
}
