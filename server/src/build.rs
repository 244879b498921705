//! What this build is, for logs, `--version` and metrics.

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit of this build, if the build was told it in `SCONCE_COMMIT`. An image's build argument
/// may be empty.
pub fn commit() -> Option<&'static str> {
    option_env!("SCONCE_COMMIT").filter(|commit| !commit.is_empty())
}
