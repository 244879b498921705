//! Weights by when a step reads them, counted one by one as they are loaded.

use sconce_kernels::{ActivationType, MatrixFormat};

/// When a weight is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Use {
    /// For every token.
    #[default]
    Always,
    /// For every token, with activations in f32 whatever the weight is made of.
    Exact,
    /// For tokens whose logits are wanted.
    Head,
    /// A row of it for a token, which is not worth counting.
    LookedUp,
    /// One of `of` experts, of which a token chooses `chosen`.
    Expert { chosen: usize, of: usize },
}

/// Weights by when they are read: their bytes, and their elements, which are the multiply-adds of
/// one token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct WeightsWork {
    pub(super) bytes: u64,
    pub(super) layers: Elements,
    pub(super) head_bytes: u64,
    pub(super) head: Elements,
    experts_bytes: u64,
    experts: Elements,
    /// Experts of a layer that a token chooses, and how many there are.
    choice: Option<(usize, usize)>,
}

/// Elements of matrices by whether integer products can be had with them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Elements {
    integer: u64,
    float: u64,
}

/// Multiply-adds, as expected values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Macs {
    pub(super) integer: f64,
    pub(super) float: f64,
}

impl Elements {
    pub(super) fn times(self, factor: f64) -> Macs {
        Macs { integer: self.integer as f64 * factor, float: self.float as f64 * factor }
    }
}

impl Macs {
    pub(super) fn times(self, factor: f64) -> Self {
        Self { integer: self.integer * factor, float: self.float * factor }
    }

    /// The products that are made of these with quantized activations, or without any.
    pub(super) fn with(self, activation: ActivationType) -> Self {
        match activation.planes() {
            0 => Self { integer: 0.0, float: self.float + self.integer },
            planes => Self { integer: planes as f64 * self.integer, float: self.float },
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self { integer: self.integer + other.integer, float: self.float + other.float }
    }
}

impl WeightsWork {
    /// Counts a matrix.
    pub(crate) fn matrix(&mut self, used: Use, format: MatrixFormat, bytes: u64, elements: u64) {
        let (all_bytes, all) = match used {
            Use::LookedUp => return,
            Use::Always | Use::Exact => (&mut self.bytes, &mut self.layers),
            Use::Head => (&mut self.head_bytes, &mut self.head),
            Use::Expert { chosen, of } => {
                self.choice = Some((chosen, of));
                (&mut self.experts_bytes, &mut self.experts)
            }
        };
        *all_bytes += bytes;
        match format.has_integer_codes() && used != Use::Exact {
            true => all.integer += elements,
            false => all.float += elements,
        }
    }

    /// Counts a small tensor, which every token reads.
    pub(crate) fn tensor(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Multiply-adds of one token with the experts it chooses.
    pub(super) fn chosen(&self) -> Macs {
        let share = self.choice.map_or(0.0, |(chosen, of)| chosen as f64 / of.max(1) as f64);
        self.experts.times(share)
    }

    /// Bytes of the experts that at least one of `tokens` chooses.
    pub(super) fn expert_bytes(&self, tokens: f64) -> f64 {
        let missed = self.choice.map_or(1.0, |(chosen, of)| 1.0 - chosen as f64 / of.max(1) as f64);
        self.experts_bytes as f64 * (1.0 - missed.powf(tokens))
    }
}
