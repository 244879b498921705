//! Where feature `cuda` is on: compiles each CUDA source into one file of machine code for several
//! GPUs, and lists them for `src/gpu/cuda/modules.rs`, which embeds them. Where `metal` is on: lists
//! the Metal sources. Otherwise does nothing.

#[path = "build/metal.rs"]
mod metal;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, thread};

/// GPUs that machine code is made for, and those whose driver makes it from PTX when it is loaded:
/// all from 9.0 on that are not listed. Code for 8.0 runs on 8.6 and 8.9, and code for 12.0 on 12.1.
const ARCHITECTURES: &str = "sm_80 sm_90a sm_120 compute_90";
/// Names others, in the same words.
const ARCHITECTURES_VARIABLE: &str = "SCONCE_CUDA_ARCHITECTURES";

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?);
    if env::var_os("CARGO_FEATURE_METAL").is_some() {
        println!("cargo::rerun-if-changed=src");
        let sources = files("metal").map_err(|error| format!("src: {error}"))?;
        metal::list(&sources, &out)?;
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    for variable in [ARCHITECTURES_VARIABLE, "NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for path in ["src", "nvcc.options"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let architectures = env::var(ARCHITECTURES_VARIABLE).unwrap_or(ARCHITECTURES.to_owned());
    println!("cargo::rustc-env={ARCHITECTURES_VARIABLE}={architectures}");
    let headers = files("cuh").map_err(|error| format!("src: {error}"))?;
    let sources = files("cu").map_err(|error| format!("src: {error}"))?;
    let common: Vec<_> = headers.into_iter().chain([PathBuf::from("nvcc.options")]).collect();
    let compiler =
        Compiler { nvcc: nvcc()?, targets: targets(&architectures)?, common: read(&common)?, out };
    compiler.compile_all(&sources)?;
    let list = listing(&compiler.out, &sources)?;
    fs::write(compiler.out.join("cuda_modules.rs"), list).map_err(|error| error.to_string())
}

/// The files of the sources that end so, in the order of their names.
fn files(extension: &str) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from("src")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The text of files, one after another.
fn read(files: &[PathBuf]) -> Result<String, String> {
    let text = |file: &PathBuf| {
        fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
    };
    files.iter().map(text).collect()
}

/// The compiler: the variable `NVCC`, then a toolkit that a variable names, then the path.
fn nvcc() -> Result<PathBuf, String> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return Ok(nvcc.into());
    }
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let mut candidates: Vec<PathBuf> =
        toolkits.map(|toolkit| Path::new(&toolkit).join("bin/nvcc")).collect();
    let path = env::var_os("PATH").unwrap_or_default();
    candidates.extend(env::split_paths(&path).map(|folder| folder.join("nvcc")));
    candidates.into_iter().find(|candidate| candidate.is_file()).ok_or_else(|| {
        "feature cuda needs nvcc of CUDA 13.0 or later, found none through NVCC, CUDA_HOME, \
         CUDA_PATH or PATH; kernels/cuda_toolkit.sh unpacks one"
            .to_owned()
    })
}

/// What nvcc is told to generate code for.
fn targets(architectures: &str) -> Result<Vec<String>, String> {
    let target = |name: &str| {
        let (kind, number) = name.split_once('_').unwrap_or_default();
        if !matches!(kind, "sm" | "compute") || number.is_empty() {
            return Err(format!(
                "{ARCHITECTURES_VARIABLE}: expected names as in `{ARCHITECTURES}`, found `{name}`"
            ));
        }
        Ok(format!("-gencode=arch=compute_{number},code={kind}_{number}"))
    };
    architectures.split_whitespace().map(target).collect()
}

struct Compiler {
    nvcc: PathBuf,
    targets: Vec<String>,
    /// What all sources depend on.
    common: String,
    out: PathBuf,
}

impl Compiler {
    /// Compiles sources, as many at once as cargo allows.
    fn compile_all(&self, sources: &[PathBuf]) -> Result<(), String> {
        let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), String> {
            while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.compile(source)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
            let ended = |worker: thread::ScopedJoinHandle<'_, Result<(), String>>| {
                worker.join().map_err(|_| "a thread that compiles panicked".to_owned())?
            };
            workers.into_iter().try_for_each(ended)
        })
    }

    /// Compiles a source, unless that is done: most builds follow an edit of another file.
    fn compile(&self, source: &PathBuf) -> Result<(), String> {
        let module = module(&self.out, source);
        let done = module.with_extension("from");
        let text = read(std::slice::from_ref(source))?;
        let from = format!("{:?} {:?}\n{}{text}", self.nvcc, self.targets, self.common);
        if fs::read_to_string(&done).is_ok_and(|before| before == from) {
            return Ok(());
        }
        // A build that fails must not leave what looks as if it had not.
        let _ = fs::remove_file(&done);
        let mut command = Command::new(&self.nvcc);
        command.args(["--options-file", "nvcc.options", "--fatbin"]);
        command.args(&self.targets).arg("-o").arg(&module).arg(source);
        let output = command
            .output()
            .map_err(|error| format!("{} does not start: {error}", self.nvcc.display()))?;
        if output.status.success() {
            return fs::write(&done, from).map_err(|error| format!("{}: {error}", done.display()));
        }
        let said = [output.stdout, output.stderr].concat();
        Err(format!("{}:\n{}", source.display(), String::from_utf8_lossy(&said)))
    }
}

/// The machine code of a source.
fn module(out: &Path, source: &Path) -> PathBuf {
    out.join(source.file_name().unwrap_or_default()).with_extension("fatbin")
}

/// An expression: name and machine code of each source.
fn listing(out: &Path, sources: &[PathBuf]) -> Result<String, String> {
    let mut list = "&[\n".to_owned();
    for source in sources {
        let (name, module) = (source.display().to_string(), module(out, source));
        writeln!(list, "({name:?}, include_bytes!({module:?})),")
            .map_err(|error| error.to_string())?;
    }
    list.push(']');
    Ok(list)
}
