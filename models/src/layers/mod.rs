//! Building blocks of architectures: operators with their weights, over the rows of one step.
//!
//! A layer knows its weights and the buffers it writes; which layers follow each other is the
//! business of an architecture.

pub(crate) mod attention;
pub(crate) mod block;
pub(crate) mod decoder;
pub(crate) mod experts;
pub(crate) mod feed_forward;
pub(crate) mod gated_attention;
pub(crate) mod gated_delta_net;
pub(crate) mod head_workspace;
pub(crate) mod hybrid;
pub(crate) mod latent_attention;
pub(crate) mod linear;
pub(crate) mod mlp;
pub(crate) mod moe;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod step;
pub(crate) mod workspace;
