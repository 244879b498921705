//! Where feature `metal` is on: lists the Metal sources for `src/gpu/metal/kernels.rs`, which embeds
//! them. The system compiles them at run time.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Folder of what goes before every source; the emulator's build does the same.
const COMMON: &str = "src/gpu";

/// Writes an expression: name and text of each common file, and of each source.
pub(crate) fn list(files: &[PathBuf], out: &Path) -> Result<(), String> {
    let here = env::var("CARGO_MANIFEST_DIR").map_err(|error| error.to_string())?;
    let mut lists = [String::new(), String::new()];
    for file in files {
        let list = &mut lists[usize::from(!file.starts_with(COMMON))];
        let (name, path) = (file.display().to_string(), Path::new(&here).join(file));
        writeln!(list, "({name:?}, include_str!({path:?})),").map_err(|error| error.to_string())?;
    }
    let [common, sources] = lists;
    let text = format!("(&[\n{common}], &[\n{sources}])");
    fs::write(out.join("metal_sources.rs"), text).map_err(|error| error.to_string())
}
