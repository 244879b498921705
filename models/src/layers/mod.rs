//! Building blocks of architectures: operators with their weights, over the rows of one step.
//!
//! A layer knows its weights and the buffers it writes; which layers follow each other is the
//! business of an architecture.

pub(crate) mod attention;
pub(crate) mod linear;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod rope;
pub(crate) mod step;
pub(crate) mod workspace;
