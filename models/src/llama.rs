//! Llama (Touvron et al., 2023) and what is built like it: RMSNorm, grouped-query attention with
//! rotary embedding, gated MLP. Names as in `transformers` checkpoints.

mod config;

use std::sync::Arc;

use sconce_kernels::{Matrix, Mode, embedding, gather_rows};

pub(crate) use self::config::LlamaConfig;
use crate::error::Error;
use crate::layers::attention::{Attention, AttentionStep};
use crate::layers::linear::Linear;
use crate::layers::mlp::Mlp;
use crate::layers::norm::RmsNorm;
use crate::layers::rope::{Frequencies, RopeTable};
use crate::layers::step::{Step, StepLimits};
use crate::layers::workspace::{HeadWorkspace, Workspace};
use crate::load::weights::Weights;
use crate::load::{LoadOptions, state_layout};
use crate::model::{Batch, Logits, Model, ModelFootprint, ModelInfo};
use crate::state::StatePool;

/// A loaded model.
#[derive(Debug)]
pub(crate) struct Llama {
    embed_tokens: Arc<Matrix>,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    lm_head: Linear,
    info: ModelInfo,
    footprint: ModelFootprint,
    limits: StepLimits,
    state: StatePool,
    step: Step,
    rope: RopeTable,
    work: Workspace,
    head: HeadWorkspace,
}

/// `x += attention(norm(x))`, then `x += mlp(norm(x))`.
#[derive(Debug)]
struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Llama {
    /// Reads all tensors, and allocates everything that stepping needs.
    ///
    /// # Errors
    /// Options that do not fit, tensors that are missing, too many or of another shape, a device
    /// that cannot allocate.
    pub(crate) fn load(
        mut weights: Weights<'_>,
        config: LlamaConfig,
        options: &LoadOptions,
    ) -> Result<Self, Error> {
        let (checkpoint, device) = (weights.checkpoint(), weights.device());
        let context_length = config.context_length(checkpoint.config(), options)?;
        let layout = state_layout(config.attention_group(), context_length, options)?;
        let frequencies =
            Frequencies::new(checkpoint.config(), &config.rope, config.attention.head_dim)?;

        let (vocab, hidden) = (config.vocab_size, config.attention.hidden_size);
        let embed_tokens = Arc::new(weights.matrix("model.embed_tokens.weight", vocab, hidden)?);
        let layers = (0..config.layers)
            .map(|index| DecoderLayer::load(&mut weights, &config, index))
            .collect::<Result<Vec<_>, Error>>()?;
        let norm = RmsNorm::load(&mut weights, "model.norm", hidden, config.rms_norm_eps)?;
        let lm_head = match config.tied {
            true => Linear::shared(Arc::clone(&embed_tokens)),
            false => Linear::load(&mut weights, "lm_head", (vocab, hidden), false)?,
        };
        let (weights_bytes, parameters) = (weights.bytes(), weights.parameters());
        weights.finish(&config.model_type)?;

        let rows = options.step_tokens_max;
        let rope = RopeTable::new(frequencies, rows, device)?;
        let work = Workspace::new(&config.workspace(options), device)?;
        let head = HeadWorkspace::new(options.sequences_max, hidden, vocab, device)?;
        let workspace_bytes = rope.bytes() + work.bytes() + head.bytes();
        Ok(Self {
            info: config.info(checkpoint, context_length, parameters, options),
            footprint: ModelFootprint { weights_bytes, workspace_bytes },
            limits: StepLimits { tokens: rows, context_length, vocab_size: vocab },
            state: StatePool::new(layout, device)?,
            step: Step::default(),
            embed_tokens,
            layers,
            norm,
            lm_head,
            rope,
            work,
            head,
        })
    }

    /// Evaluates the planned step up to the residual stream after the last layer.
    fn decode(&mut self, tokens: &[u32]) -> Result<(), Error> {
        embedding(&self.work.hidden, &self.embed_tokens, tokens)?;
        self.rope.fill(&self.step.positions)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let kv = self.state.layer(index).expect("the pool was made for these layers");
            let at = AttentionStep { step: &self.step, rope: &self.rope, kv };
            layer.forward(&mut self.work, at)?;
        }
        Ok(())
    }

    /// Logits of the rows that asked for them, in the leading rows of the head's buffer.
    fn predict(&mut self) -> Result<(), Error> {
        let rows = self.step.logits_rows.len();
        if rows == 0 {
            return Ok(());
        }
        let head = &self.head;
        gather_rows(&head.hidden, &self.work.hidden, &self.step.logits_rows)?;
        self.norm.forward(&head.normed, &head.hidden, rows)?;
        let x = self.work.activations.prepare(&head.normed, rows, &[&self.lm_head.weight])?;
        self.lm_head.forward(&head.logits, &x, rows, Mode::Store)
    }
}

impl DecoderLayer {
    fn load(weights: &mut Weights<'_>, config: &LlamaConfig, index: usize) -> Result<Self, Error> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (shape, eps) = (config.attention, config.rms_norm_eps);
        let hidden = shape.hidden_size;
        let (input, post) = (name("input_layernorm"), name("post_attention_layernorm"));
        Ok(Self {
            input_layernorm: RmsNorm::load(weights, &input, hidden, eps)?,
            self_attn: Attention::load(weights, &name("self_attn"), shape, config.attention_bias)?,
            post_attention_layernorm: RmsNorm::load(weights, &post, hidden, eps)?,
            mlp: Mlp::load(
                weights,
                &name("mlp"),
                hidden,
                config.intermediate_size,
                config.mlp_bias,
            )?,
        })
    }

    fn forward(&self, work: &mut Workspace, at: AttentionStep<'_>) -> Result<(), Error> {
        let rows = at.step.rows();
        self.input_layernorm.forward(&work.normed, &work.hidden, rows)?;
        self.self_attn.forward(work, at)?;
        self.post_attention_layernorm.forward(&work.normed, &work.hidden, rows)?;
        self.mlp.forward(work, rows)
    }
}

impl Model for Llama {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn footprint(&self) -> ModelFootprint {
        self.footprint
    }

    fn state(&self) -> &StatePool {
        &self.state
    }

    fn state_mut(&mut self) -> &mut StatePool {
        &mut self.state
    }

    fn step_tokens_max(&self) -> usize {
        self.limits.tokens
    }

    fn forward(&mut self, batch: &Batch) -> Result<Logits<'_>, Error> {
        self.step.plan(batch, &self.state, self.limits)?;
        self.decode(&batch.tokens)?;
        self.predict()?;
        for segment in &batch.segments {
            // The plan has verified that there is room, so none of these fails halfway.
            self.state.advance(segment.sequence, segment.len)?;
        }
        let rows = self.step.logits_rows.len();
        let data = self.head.read_logits(rows)?;
        Ok(Logits { data, vocab_size: self.limits.vocab_size })
    }
}
