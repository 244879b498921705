//! `write_kv` and `paged_attention` on GPUs: which kernels run, with which arguments.

use candle_core::Tensor;

use super::blocks::{CHUNK, Form, Plan, SPLIT_TOKENS, form};
use super::{AttentionOptions, KvPages, KvSide, KvType, PageTable, Shape};
use crate::access::check;
use crate::error::Result;
use crate::gpu::{Call, Gpu, Grid, Language, in_fours, scratch};

/// Widest head.
const HEAD_MAX: usize = 256;
/// Threads of a block that writes keys and values.
const WRITE_THREADS: u32 = 128;
/// Heads that it writes, one for each warp.
const HEADS_WRITTEN: usize = 4;
/// Tokens of a tile, whose keys and values are in shared memory together on tensor cores.
const TILE: usize = 32;
/// Elements of 2 bytes by which rows of queries, keys and values are apart there beyond their width.
const PAD: usize = 8;

/// Writes rows of new keys and values into the pages.
pub(super) fn write_kv(
    gpu: Gpu,
    kv: KvPages<'_>,
    [k, v]: [&Tensor; 2],
    slots: &[u32],
    [keys, values]: [&Shape; 2],
) -> Result<()> {
    let mut call = Call::new("write_kv", gpu);
    match keys.kv_type {
        KvType::F32 => call.write::<f32>("keys", kv.keys)?.write::<f32>("values", kv.values)?,
        KvType::Int8 => call.write::<u32>("keys", kv.keys)?.write::<u32>("values", kv.values)?,
    };
    call.read::<f32>("k", k)?.read::<f32>("v", v)?.list(slots)?;
    call.size("slots", slots.len())?.size("keys", keys.kv_heads)?;
    call.size("keys", keys.page_tokens)?;
    call.size("keys", keys.head_dim)?.size("values", values.head_dim)?;
    let heads = 2 * slots.len() * keys.kv_heads;
    let grid = Grid::row(heads.div_ceil(HEADS_WRITTEN), WRITE_THREADS);
    match keys.kv_type {
        // SAFETY: the parameters of the kernel; slots were checked against the pages, and each has a
        // row of `k` and `v`.
        KvType::F32 => unsafe { call.launch("write_kv_f32", grid) },
        KvType::Int8 => {
            call.size("keys", KvSide::Keys.group())?.size("values", KvSide::Values.group())?;
            // SAFETY: as above.
            unsafe { call.launch("write_kv_int8", grid) }
        }
    }
}

/// Attention of every row of every segment.
pub(super) fn paged_attention(
    gpu: Gpu,
    out: &Tensor,
    q: &Tensor,
    kv: KvPages<'_>,
    table: PageTable<'_>,
    (shape, options): (&Shape, AttentionOptions),
) -> Result<()> {
    const OP: &str = "paged_attention";
    check(OP, "keys", shape.head_dim <= HEAD_MAX, || {
        (format!("heads of at most {HEAD_MAX}"), shape.head_dim.to_string())
    })?;
    aligned(OP, shape.head_dim, &[("q", q), ("keys", kv.keys), ("values", kv.values)])?;
    let window = options.window.map_or(u32::MAX, |window| window.try_into().unwrap_or(u32::MAX));
    let plan = Plan {
        group: shape.heads / shape.kv_heads,
        kv_heads: shape.kv_heads,
        value_dim: shape.head_dim,
        window,
        forms: forms(gpu.language(), shape),
    };
    for run in plan.runs(table) {
        let parts = scratch(OP, out.device(), plan.scratch(&run))?;
        let mut call = Call::new(OP, gpu);
        call.write::<f32>("out", out)?.read::<f32>("q", q)?;
        match shape.kv_type {
            KvType::F32 => call.read::<f32>("keys", kv.keys)?.read::<f32>("values", kv.values)?,
            KvType::Int8 => call.read::<u32>("keys", kv.keys)?.read::<u32>("values", kv.values)?,
        };
        call.list(&run.items)?.list(table.pages)?.write::<u32>("scratch", &parts)?;
        call.size("q", shape.heads)?.size("keys", shape.kv_heads)?;
        call.size("keys", shape.page_tokens)?.size("keys", shape.head_dim)?;
        call.real(options.scale).word(window);
        call.size("split", SPLIT_TOKENS)?.size("splits", run.splits)?;
        // SAFETY: the parameters of the kernels; the table was checked against the tensors.
        unsafe { plan.launch(&call, &run)? };
    }
    Ok(())
}

/// Refuses tensors that do not start at 16 bytes where kernels read as many at a time.
pub(crate) fn aligned(
    op: &'static str,
    dim: usize,
    operands: &[(&'static str, &Tensor)],
) -> Result<()> {
    operands.iter().filter(|_| dim.is_multiple_of(4)).try_for_each(|(operand, tensor)| {
        check(op, operand, in_fours(dim, &[tensor]), || {
            let found = tensor.layout().start_offset().to_string();
            ("starting at a multiple of 4 elements".to_owned(), found)
        })
    })
}

/// Blocks for few lines, and for many.
fn forms(language: Language, shape: &Shape) -> [Form; 2] {
    let width = shape.head_dim.next_multiple_of(CHUNK);
    // Kernels are made for as many chunks, a power of two.
    let size = width.div_ceil(CHUNK).next_power_of_two().ilog2() as usize;
    let (chunks, merge) = (1 << size, "paged_attention_merge_8");
    let few = |names: [&'static str; 3]| form(8, width, chunks, [names[size], merge]);
    let merge = "paged_attention_merge_32";
    let many = |names: [&'static str; 3]| form(32, width, chunks, [names[size], merge]);
    match (shape.kv_type, language) {
        (KvType::F32, _) => {
            let few = few([
                "paged_attention_f32_8_64",
                "paged_attention_f32_8_128",
                "paged_attention_f32_8_256",
            ]);
            let many = many([
                "paged_attention_f32_32_64",
                "paged_attention_f32_32_128",
                "paged_attention_f32_32_256",
            ]);
            [few, if many.fits(language) { many } else { few }]
        }
        (KvType::Int8, Language::Metal) => {
            let few = few([
                "paged_attention_int8_8_64",
                "paged_attention_int8_8_128",
                "paged_attention_int8_8_256",
            ]);
            // Wider heads leave no room for the queries of more lines.
            let many = ["paged_attention_int8_32_64", "paged_attention_int8_32_128"];
            [few, many.get(size).map_or(few, |name| form(32, width, chunks, [name, merge]))]
        }
        (KvType::Int8, Language::Cuda) => coded_forms(CHUNK << size),
    }
}

/// Blocks of one warp and of four on tensor cores, for heads of up to `width` elements.
fn coded_forms(width: usize) -> [Form; 2] {
    let [few, many] = match width {
        64 => ["paged_attention_int8_16_64", "paged_attention_int8_64_64"],
        128 => ["paged_attention_int8_16_128", "paged_attention_int8_64_128"],
        _ => ["paged_attention_int8_16_256", "paged_attention_int8_64_256"],
    };
    let form = |warps: usize, attention, merge| Form {
        lines: 16 * warps,
        threads: 32 * warps as u32,
        shared: (16 * warps + 2 * TILE) * (width + PAD) * 2,
        attention,
        merge,
    };
    [form(1, few, "paged_attention_merge_16"), form(4, many, "paged_attention_merge_64")]
}
