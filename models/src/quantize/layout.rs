//! What a quantized directory consists of: the weights of a checkpoint under the names, shapes and
//! conventions in which MLX-LM stores each architecture.
//!
//! Experts become one stack for each projection, whatever they were; GLM's expansion of the latent
//! becomes `embed_q` and `unembed_out`; zero-centred norms get their one. Nothing is read but headers.

use std::collections::BTreeMap;

use sconce_kernels::DenseType;

use super::policy::packing_of;
use super::source::{Recipe, dense};
use super::{Packing, QuantizeFormat};
use crate::checkpoint::{Checkpoint, RowSelection};
use crate::error::Error;

/// How MLX-LM stores an architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Family {
    /// Put before canonical names.
    prefix: &'static str,
    /// Whether zero-centred norms are stored with one added.
    shifts_norms: bool,
}

/// Architectures that MLX-LM loads, by `model_type` of the outermost configuration.
const FAMILIES: &[(&str, Family)] = &[
    ("gemma3", Family { prefix: "language_model.", shifts_norms: false }),
    ("gemma3_text", Family { prefix: "", shifts_norms: false }),
    ("glm4_moe_lite", Family { prefix: "", shifts_norms: false }),
    ("llama", Family { prefix: "", shifts_norms: false }),
    ("mistral", Family { prefix: "", shifts_norms: false }),
    ("qwen3", Family { prefix: "", shifts_norms: false }),
    ("qwen3_5", Family { prefix: "language_model.", shifts_norms: true }),
    ("qwen3_5_moe", Family { prefix: "language_model.", shifts_norms: true }),
    ("qwen3_5_moe_text", Family { prefix: "language_model.", shifts_norms: true }),
    ("qwen3_5_text", Family { prefix: "language_model.", shifts_norms: true }),
    ("qwen3_moe", Family { prefix: "", shifts_norms: false }),
    ("qwen3_next", Family { prefix: "", shifts_norms: true }),
];

/// Norms that are zero-centred in the checkpoints of families that shift them.
const ZERO_CENTRED: &[&str] = &[
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "model.norm.weight",
    "q_norm.weight",
    "k_norm.weight",
];

/// Where names of tensors begin that no text model has a place for.
const NOT_TEXT: &[&str] =
    &["vision.", "multi_modal_projector.", "model.multi_modal_projector.", "mtp."];

/// Where the names of all others begin.
const TEXT: &[&str] = &["model.embed_tokens.", "model.layers.", "model.norm.", "lm_head."];

/// A weight of the directory.
#[derive(Debug, Clone)]
pub(super) struct Output {
    /// Its name there; with `.weight`, if the module has one.
    pub(super) name: String,
    /// Logical shape, rows first.
    pub(super) shape: Vec<usize>,
    /// Type in the checkpoint, which scales and unpacked values keep.
    pub(super) dense_type: DenseType,
    /// How it is packed, if it is.
    pub(super) packing: Option<Packing>,
    /// How it is made.
    pub(super) recipe: Recipe,
}

/// All weights of the directory, and what of the checkpoint it has not.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// In the order in which they are written.
    pub(super) outputs: Vec<Output>,
    /// Canonical names of tensors that are left out: vision, extra heads for speculation, the
    /// second copy of tied embeddings.
    pub(super) left_out: Vec<String>,
}

/// The layout of `checkpoint` in `format`; `model_type` is that of the outermost configuration, and
/// `tied` says whether the embeddings are the head.
///
/// # Errors
/// An architecture without a known layout, a tensor that is missing, has the wrong shape, or is
/// quantized already.
pub(super) fn plan(
    checkpoint: &Checkpoint,
    model_type: &str,
    tied: bool,
    format: QuantizeFormat,
) -> Result<Layout, Error> {
    let known = FAMILIES.iter().find(|(name, _)| *name == model_type);
    let Some((_, family)) = known else {
        return Err(Error::UnsupportedArchitecture {
            file: checkpoint.path().display().to_string(),
            found: model_type.to_string(),
            supported: FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        });
    };
    let layers = checkpoint.config().required_count("num_hidden_layers")?;
    let mut planner = Planner {
        checkpoint,
        model_type,
        family: *family,
        layers,
        format,
        experts: BTreeMap::new(),
        layout: Layout::default(),
    };
    for name in checkpoint.names() {
        if is_left_out(name, layers, tied) {
            planner.layout.left_out.push(name.to_string());
        } else {
            planner.add(name)?;
        }
    }
    planner.add_single_experts()?;
    // Layer after layer, whatever the names in the checkpoint sort like.
    planner.layout.outputs.sort_by_cached_key(|output| {
        let canonical = output.name.strip_prefix(family.prefix).unwrap_or(&output.name);
        (layer_and_rest(canonical).map(|(layer, _)| layer), output.name.clone())
    });
    Ok(planner.layout)
}

fn is_left_out(name: &str, layers: usize, tied: bool) -> bool {
    NOT_TEXT.iter().any(|prefix| name.starts_with(prefix))
        || name.ends_with(".rotary_emb.inv_freq")
        || (tied && name == "lm_head.weight")
        || layer_and_rest(name).is_some_and(|(layer, _)| layer >= layers)
}

/// `N` and what follows in `model.layers.N.`.
fn layer_and_rest(name: &str) -> Option<(usize, &str)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest))
}

struct Planner<'a> {
    checkpoint: &'a Checkpoint,
    model_type: &'a str,
    family: Family,
    layers: usize,
    format: QuantizeFormat,
    /// Experts stored one by one: by the name of their stack, their names by number.
    experts: BTreeMap<String, BTreeMap<usize, String>>,
    layout: Layout,
}

impl Planner<'_> {
    fn add(&mut self, name: &str) -> Result<(), Error> {
        if !TEXT.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(self.unexpected(name));
        }
        let (module, leaf) =
            name.strip_suffix(".weight").unwrap_or(name).rsplit_once('.').unwrap_or(("", name));
        if let Some((block, number)) = module.rsplit_once(".experts.") {
            let Ok(number) = number.parse() else { return Err(self.unexpected(name)) };
            let stack = format!("{block}.switch_mlp.{leaf}.weight");
            self.experts.entry(stack).or_default().insert(number, name.to_string());
            return Ok(());
        }
        match (module.rsplit_once('.'), leaf) {
            (Some((block, "experts")), "gate_up_proj") => self.add_gate_up(name, block),
            (Some((block, "experts")), "down_proj") => {
                let target = format!("{block}.switch_mlp.down_proj.weight");
                self.push(&target, self.shape(name)?, Recipe::tensor(name))
            }
            (_, "kv_b_proj") => self.add_latent(name, module),
            (_, "conv1d") => {
                // MLX has channels last, of which a depthwise convolution has one.
                let shape = self.shape(name)?;
                let (channels, rest) = shape.split_first().unwrap_or((&1, &[]));
                let shape = vec![*channels, rest.iter().product(), 1];
                self.push(name, shape, Recipe::tensor(name))
            }
            _ => {
                let recipe = match self.is_shifted(name) {
                    true => Recipe::PlusOne(name.to_string()),
                    false => Recipe::tensor(name),
                };
                self.push(name, self.shape(name)?, recipe)
            }
        }
    }

    fn is_shifted(&self, name: &str) -> bool {
        self.family.shifts_norms
            && !self.checkpoint.conventions().norms_shifted
            && ZERO_CENTRED.iter().any(|norm| name.ends_with(norm))
    }

    /// Splits a stack `[experts, 2 * inner, hidden]`, gates first.
    fn add_gate_up(&mut self, name: &str, block: &str) -> Result<(), Error> {
        let shape = self.shape(name)?;
        let [experts, rows, hidden] = shape[..] else {
            return Err(self.bad_shape(name, "[experts, 2 * inner, hidden]", &shape));
        };
        if !rows.is_multiple_of(2) {
            return Err(self.bad_shape(name, "[experts, 2 * inner, hidden]", &shape));
        }
        let inner = rows / 2;
        for (part, leaf) in ["gate_proj", "up_proj"].into_iter().enumerate() {
            let start = part * inner;
            let ranges = (0..experts).map(|e| e * rows + start..e * rows + start + inner).collect();
            let recipe = Recipe::Rows(vec![(name.to_string(), RowSelection::ranges(ranges))]);
            let target = format!("{block}.switch_mlp.{leaf}.weight");
            self.push(&target, vec![experts, inner, hidden], recipe)?;
        }
        Ok(())
    }

    /// Splits `kv_b_proj` `[heads * (nope + value), latent]` into what turns a query into the latent
    /// space, `[heads, latent, nope]`, and what turns a latent into values, `[heads, value, latent]`.
    fn add_latent(&mut self, name: &str, module: &str) -> Result<(), Error> {
        let config = self.checkpoint.config();
        let heads = config.required_count("num_attention_heads")?;
        let nope = config.required_count("qk_nope_head_dim")?;
        let value = config.required_count("v_head_dim")?;
        let shape = self.shape(name)?;
        let rows = heads.saturating_mul(nope.saturating_add(value));
        let [found, latent] = shape[..] else {
            return Err(self.bad_shape(name, "[heads * (nope + value), latent]", &shape));
        };
        if found != rows {
            return Err(self.bad_shape(name, &format!("[{rows}, latent]"), &shape));
        }
        let select = |start: usize, len: usize| {
            let first = |head: usize| head * (nope + value) + start;
            RowSelection::ranges((0..heads).map(|head| first(head)..first(head) + len).collect())
        };
        let recipe =
            Recipe::Transposed { name: name.to_string(), selection: select(0, nope), block: nope };
        self.push(&format!("{module}.embed_q.weight"), vec![heads, latent, nope], recipe)?;
        let recipe = Recipe::Rows(vec![(name.to_string(), select(nope, value))]);
        self.push(&format!("{module}.unembed_out.weight"), vec![heads, value, latent], recipe)
    }

    /// Stacks the experts that were stored one by one, once all are known.
    fn add_single_experts(&mut self) -> Result<(), Error> {
        for (target, experts) in std::mem::take(&mut self.experts) {
            let mut parts = Vec::with_capacity(experts.len());
            let mut shape = vec![experts.len()];
            for (position, (number, name)) in experts.iter().enumerate() {
                if *number != position {
                    let missing =
                        name.replacen(&format!(".{number}."), &format!(".{position}."), 1);
                    let file = self.checkpoint.path().display().to_string();
                    return Err(Error::MissingTensor { file, tensor: missing });
                }
                let one = self.shape(name)?;
                match position {
                    0 => shape.extend(one),
                    _ if shape[1..] == one => {}
                    _ => return Err(self.bad_shape(name, &format!("{:?}", &shape[1..]), &one)),
                }
                parts.push((name.clone(), RowSelection::all()));
            }
            self.push(&target, shape, Recipe::Rows(parts))?;
        }
        Ok(())
    }

    fn push(&mut self, canonical: &str, shape: Vec<usize>, recipe: Recipe) -> Result<(), Error> {
        let dense_type = recipe.dense_type(self.checkpoint)?;
        self.layout.outputs.push(Output {
            name: format!("{}{canonical}", self.family.prefix),
            packing: packing_of(canonical, &shape, self.layers, self.format),
            shape,
            dense_type,
            recipe,
        });
        Ok(())
    }

    /// The shape of a tensor of plain numbers that has any.
    fn shape(&self, name: &str) -> Result<Vec<usize>, Error> {
        dense(self.checkpoint, name, RowSelection::all())?;
        let shape = self.checkpoint.weight(name)?.shape().to_vec();
        match shape.contains(&0) {
            true => Err(self.bad_shape(name, "without a zero", &shape)),
            false => Ok(shape),
        }
    }

    fn bad_shape(&self, name: &str, expected: &str, found: &[usize]) -> Error {
        let file = self.checkpoint.path().display();
        let place = format!("tensor {name}");
        Error::format(file, place, format!("shape {expected}"), format!("shape {found:?}"))
    }

    fn unexpected(&self, name: &str) -> Error {
        Error::UnexpectedTensor {
            file: self.checkpoint.path().display().to_string(),
            tensor: name.to_string(),
            architecture: self.model_type.to_string(),
        }
    }
}
