//! What a step costs at least, by the weights and the state of a model: bytes that must be read,
//! multiply-adds that must be done. Counted while weights are read; how fast they go is measured
//! elsewhere.

mod weights;

use sconce_kernels::{ActivationType, KvType};

use self::weights::Macs;
pub(crate) use self::weights::{Use, WeightsWork};
use crate::state::StateLayout;

/// Products with keys and values in 8 bits: queries and weights come in two halves of 8 bits.
const CODE_PLANES: f64 = 2.0;

/// What a step costs at least.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepWork {
    /// Bytes of weights, each read once in the step.
    pub weight_bytes: f64,
    /// Bytes of state: keys and values that are attended to, read once in the step; recurrent
    /// state, read and written.
    pub state_bytes: f64,
    /// Multiply-adds of 8-bit integers: products of weights with quantized activations, and of keys
    /// and values in 8 bits.
    pub integer_macs: f64,
    /// Multiply-adds of f32: all other products of weights and of keys and values, and those of the
    /// recurrent layers.
    pub float_macs: f64,
}

impl StepWork {
    /// The work of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            weight_bytes: self.weight_bytes + other.weight_bytes,
            state_bytes: self.state_bytes + other.state_bytes,
            integer_macs: self.integer_macs + other.integer_macs,
            float_macs: self.float_macs + other.float_macs,
        }
    }

    /// Bytes of weights and state.
    pub fn bytes(&self) -> f64 {
        self.weight_bytes + self.state_bytes
    }
}

/// Which step it is: each of `sequences` sequences holds `first_position` tokens and advances by
/// `len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepShape {
    /// Sequences in the step.
    pub sequences: usize,
    /// Tokens that each holds before.
    pub first_position: usize,
    /// Tokens that each advances by.
    pub len: usize,
    /// Whether logits are wanted after the last token of each.
    pub logits: bool,
}

/// What a model does for a token, from which the work of any step follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenWork {
    pub(crate) weights: WeightsWork,
    /// How weights of integers read activations, in the layers and in the head.
    pub(crate) activations: [ActivationType; 2],
    /// For each attention layer, how many tokens one sees; all if `None`.
    pub(crate) windows: Vec<Option<usize>>,
    /// Multiply-adds of a token and one that it sees, in one attention layer.
    pub(crate) attention_macs: u64,
    /// How keys and values are kept.
    pub(crate) kv_type: KvType,
    /// State of one position in one attention layer.
    pub(crate) position_bytes: u64,
    /// Recurrent state of one sequence.
    pub(crate) recurrent_bytes: u64,
    /// Multiply-adds of a token in all recurrent layers, token by token.
    pub(crate) recurrent_macs: u64,
}

impl TokenWork {
    /// The work of a model of these weights and this state, with `attention_macs` for a token and
    /// one that it sees in one layer, and a window for each attention layer.
    pub(crate) fn new(
        weights: WeightsWork,
        activations: [ActivationType; 2],
        layout: &StateLayout,
        (windows, attention_macs): (Vec<Option<usize>>, u64),
    ) -> Self {
        let recurrent_macs = layout.recurrent.map_or(0, |group| {
            // The state times a key, a product of two vectors added, the state times a query.
            let delta = 3 * group.value_heads * group.key_dim * group.value_dim;
            let convolution = (group.conv_tail + 1) * group.conv_channels;
            (group.layers * (delta + convolution)) as u64
        });
        Self {
            weights,
            activations,
            attention_macs,
            kv_type: layout.attention.first().map_or(KvType::F32, |group| group.kv_type),
            position_bytes: layout.bytes_per_token() / windows.len().max(1) as u64,
            windows,
            recurrent_bytes: layout.bytes_per_sequence(),
            recurrent_macs,
        }
    }

    /// The work of a step. Experts are taken to be chosen evenly and independently by its tokens.
    pub fn step(&self, shape: StepShape) -> StepWork {
        let (sequences, tokens) = (shape.sequences as f64, (shape.sequences * shape.len) as f64);
        let (mut read, mut seen) = (0.0, 0.0);
        for window in &self.windows {
            let end = shape.first_position + shape.len;
            let first =
                window.map_or(0, |window| (shape.first_position + 1).saturating_sub(window));
            read += (end - first.min(end)) as f64;
            seen += seen_by(shape.first_position, shape.len, *window);
        }
        let weights = &self.weights;
        let [layers, head] = self.activations;
        let mut macs =
            weights.layers.times(tokens).and(weights.chosen().times(tokens)).with(layers);
        let mut weight_bytes = weights.bytes as f64 + weights.expert_bytes(tokens);
        if shape.logits {
            macs = macs.and(weights.head.times(sequences).with(head));
            weight_bytes += weights.head_bytes as f64;
        }
        let attended = sequences * seen * self.attention_macs as f64;
        macs = macs.and(match self.kv_type {
            KvType::F32 => Macs { integer: 0.0, float: attended },
            KvType::Int8 => Macs { integer: CODE_PLANES * attended, float: 0.0 },
        });
        let state = self.position_bytes as f64 * read + 2.0 * self.recurrent_bytes as f64;
        StepWork {
            weight_bytes,
            state_bytes: sequences * state,
            integer_macs: macs.integer,
            float_macs: macs.float + tokens * self.recurrent_macs as f64,
        }
    }
}

/// Tokens that `len` tokens from `first` on see together, themselves included.
fn seen_by(first: usize, len: usize, window: Option<usize>) -> f64 {
    let window = window.unwrap_or(usize::MAX);
    // As long as a token sees all before it, it sees one more than the token before.
    let growing = window.saturating_sub(first).min(len) as f64;
    let (first, len) = (first as f64, len as f64);
    let full = if len > growing { (len - growing) * window as f64 } else { 0.0 };
    growing * first + growing * (growing + 1.0) / 2.0 + full
}

#[cfg(test)]
mod tests {
    use sconce_kernels::{AffineFormat, DenseType, MatrixFormat, ScaleType};

    use super::*;
    use crate::state::{AttentionGroup, RecurrentGroup};

    const INTEGER: MatrixFormat = MatrixFormat::Affine(AffineFormat {
        bits: 4,
        group_size: 32,
        zero_point: Some(8),
        scales: ScaleType::F16,
    });
    const FLOAT: MatrixFormat = MatrixFormat::Dense(DenseType::F32);

    /// Two attention layers, the second with a window of 4, and one recurrent layer.
    fn work(layers: ActivationType) -> TokenWork {
        work_with(layers, KvType::F32)
    }

    fn work_with(layers: ActivationType, kv_type: KvType) -> TokenWork {
        let head = if layers == ActivationType::F32 { layers } else { ActivationType::Int16 };
        let mut weights = WeightsWork::default();
        weights.matrix(Use::LookedUp, FLOAT, 9999, 9999);
        weights.matrix(Use::Always, INTEGER, 500, 1000);
        weights.matrix(Use::Always, FLOAT, 30, 6);
        weights.matrix(Use::Exact, INTEGER, 10, 4);
        weights.matrix(Use::Head, INTEGER, 5, 100);
        for _ in 0..8 {
            weights.matrix(Use::Expert { chosen: 2, of: 8 }, INTEGER, 64, 128);
        }
        weights.tensor(7);
        let layout = StateLayout {
            attention: vec![AttentionGroup {
                layers: 2,
                kv_heads: 1,
                key_dim: 16,
                value_dim: 16,
                kv_type,
            }],
            recurrent: Some(RecurrentGroup {
                layers: 1,
                conv_tail: 3,
                conv_channels: 10,
                value_heads: 2,
                key_dim: 4,
                value_dim: 8,
            }),
            page_tokens: 64,
            pages_max: 1,
            sequences_max: 1,
            points_max: 0,
        };
        TokenWork::new(weights, [layers, head], &layout, (vec![None, Some(4)], 3))
    }

    fn step(sequences: usize, first_position: usize, len: usize, logits: bool) -> StepShape {
        StepShape { sequences, first_position, len, logits }
    }

    #[test]
    fn a_token_reads_what_it_uses_and_experts_it_chooses() {
        let work = work(ActivationType::Int8);
        let first = work.step(step(1, 0, 1, true));
        assert_eq!(first.weight_bytes, 547.0 + 5.0 + 2.0 * 64.0);
        assert_eq!(first.integer_macs, 1000.0 + 2.0 * 100.0 + 2.0 * 128.0);
        let recurrent = 3.0 * 2.0 * 4.0 * 8.0 + 4.0 * 10.0;
        assert_eq!(first.float_macs, 10.0 + 2.0 * 3.0 + recurrent);
        let without = work.step(step(1, 0, 1, false));
        assert_eq!(without.weight_bytes, first.weight_bytes - 5.0);
        assert_eq!(without.integer_macs, first.integer_macs - 2.0 * 100.0);
    }

    #[test]
    fn state_grows_with_the_depth_up_to_the_window() {
        let work = work(ActivationType::Int8);
        let recurrent = 2.0 * work.recurrent_bytes as f64;
        let position = work.position_bytes as f64;
        assert_eq!(work.step(step(1, 9, 1, true)).state_bytes, (10.0 + 4.0) * position + recurrent);
        let streams = work.step(step(3, 1, 1, true));
        assert_eq!(streams.state_bytes, 3.0 * ((2.0 + 2.0) * position + recurrent));
        // Five tokens from 2 on: each sees all before it, or the last four.
        assert_eq!(seen_by(2, 5, None), (3 + 4 + 5 + 6 + 7) as f64);
        assert_eq!(seen_by(2, 5, Some(4)), (3 + 4 + 4 + 4 + 4) as f64);
        assert_eq!(seen_by(9, 2, Some(4)), 8.0);
        assert_eq!(work.step(step(1, 2, 5, true)).state_bytes, (7.0 + 7.0) * position + recurrent);
        assert_eq!(work.step(step(1, 9, 2, true)).state_bytes, (11.0 + 5.0) * position + recurrent);
    }

    #[test]
    fn keys_in_eight_bits_are_fewer_bytes_and_integer_products() {
        let [wide, narrow] = [KvType::F32, KvType::Int8]
            .map(|kv_type| work_with(ActivationType::Int8, kv_type).step(step(1, 9, 1, true)));
        assert!(narrow.state_bytes < wide.state_bytes);
        let attended = (10.0 + 4.0) * 3.0;
        assert_eq!(narrow.float_macs, wide.float_macs - attended);
        assert_eq!(narrow.integer_macs, wide.integer_macs + 2.0 * attended);
    }

    #[test]
    fn weights_are_read_once_for_all_tokens_of_a_step() {
        let work = work(ActivationType::Int8);
        let (one, many) = (work.step(step(1, 0, 1, true)), work.step(step(1, 0, 64, true)));
        assert_eq!(many.integer_macs, 64.0 * (one.integer_macs - 200.0) + 200.0);
        // With so many tokens hardly an expert is left out.
        let all = 547.0 + 5.0 + 8.0 * 64.0;
        assert!(many.weight_bytes <= all && many.weight_bytes > all - 1.0);
    }

    #[test]
    fn precision_decides_what_kind_of_product_it_is() {
        let [exact, int8, int16] =
            [ActivationType::F32, ActivationType::Int8, ActivationType::Int16]
                .map(|activation| work(activation).step(step(1, 0, 1, true)));
        assert_eq!(exact.integer_macs, 0.0);
        assert_eq!(exact.float_macs, int8.float_macs + int8.integer_macs - 100.0);
        assert_eq!(int16.integer_macs, 2.0 * (int8.integer_macs - 100.0));
        assert_eq!(int16.bytes(), int8.bytes());
    }
}
