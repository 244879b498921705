//! Compiles every `.cu` and `.metal` file of `kernels/src` for the CPU, with a table of its kernels.

#[path = "build/source.rs"]
mod source;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use source::{Kernel, Language};

const FLAGS: &[&str] = &[
    // Kernels read the halves of words; numbers are told from bits by `memcpy` in the headers.
    "-fno-strict-aliasing",
    "-Wno-attributes",
    "-Wno-unknown-pragmas",
];
/// Variables that are read before they are written are no zeros.
const INITIALIZED: &str = "-ftrivial-auto-var-init=pattern";
/// What feature `asan` adds. Its libraries are gcc's.
const SANITIZERS: &[&str] = &[
    "-fsanitize=address,alignment,bounds,integer-divide-by-zero,shift",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
];

fn main() -> io::Result<()> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?);
    let out = PathBuf::from(env::var("OUT_DIR").map_err(io::Error::other)?);
    let sources = here.join("../src").canonicalize()?;
    for watched in
        ["build", "fixtures", "include"].map(|name| here.join(name)).iter().chain([&sources])
    {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    let mut tables = Vec::new();
    let mut units = Vec::new();
    for language in [Language::Cuda, Language::Metal] {
        let mut names = Vec::new();
        let mut files = files(&sources, language.extension())?;
        files.push(here.join("fixtures/fixtures").with_extension(language.extension()));
        for file in files {
            let name = format!("{}_{}", language.extension(), stem(&file));
            let expanded = expand(&here, &sources, &out, language, &file)?;
            let translated = source::translate(&expanded, language)
                .map_err(|what| io::Error::other(format!("{}: {what}", file.display())))?;
            units.push((name.clone(), translated.text + &table(&name, &translated.kernels)));
            names.push(name);
        }
        tables.push((language, names));
    }
    // First, as linkers look for what is missing in what comes after.
    units.insert(0, ("tables".to_owned(), all_tables(&here, &tables)));
    println!("cargo::rustc-link-search=native={}", out.display());
    if cfg!(feature = "asan") {
        // gcc's. Before all others: AddressSanitizer must be the first library that is loaded.
        println!("cargo::rustc-link-lib=dylib=asan");
        println!("cargo::rustc-link-lib=dylib=ubsan");
    }
    units.iter().try_for_each(|(name, text)| compile(&here, &out, name, text))
}

/// Compiles a unit into a library of its own, unless that is there from an earlier build: one file
/// was edited, as a rule.
fn compile(here: &Path, out: &Path, name: &str, text: &str) -> io::Result<()> {
    let (source, library) = (out.join(name).with_extension("cpp"), format!("emulated_{name}"));
    let made = out.join(format!("lib{library}.a"));
    // With the flags, so that others make another source.
    let text = format!("{text}\n// {FLAGS:?} {INITIALIZED} {SANITIZERS:?}\n");
    if made.exists() && fs::read_to_string(&source).is_ok_and(|before| before == text) {
        println!("cargo::rustc-link-lib=static={library}");
        let apple = env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|vendor| vendor == "apple");
        println!("cargo::rustc-link-lib={}", if apple { "c++" } else { "stdc++" });
        return Ok(());
    }
    // A build that fails must not leave what looks as if it had not.
    let _ = fs::remove_file(&made);
    fs::write(&source, text)?;
    let mut build = compiler(here);
    build.opt_level(if cfg!(feature = "asan") { 1 } else { 2 });
    build.file(source).try_compile(&library).map_err(io::Error::other)
}

fn compiler(here: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .include(here.join("include"))
        .include(here.join("include/stdlib"))
        .warnings(false)
        .debug(true)
        .flag_if_supported(INITIALIZED);
    for flag in FLAGS.iter().chain(if cfg!(feature = "asan") { SANITIZERS } else { &[] }) {
        build.flag(flag);
    }
    build
}

/// Source files of a language in the folders of the operators, in the order of their names.
fn files(sources: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for folder in fs::read_dir(sources)? {
        let folder = folder?.path();
        if !folder.is_dir() || folder.ends_with("gpu") {
            continue;
        }
        files.extend(of_extension(&folder, extension)?);
    }
    files.sort();
    Ok(files)
}

/// Files of a folder with an extension, in the order of their names.
fn of_extension(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for file in fs::read_dir(folder)? {
        let file = file?.path();
        if file.extension().is_some_and(|found| found == extension) {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn stem(file: &Path) -> String {
    file.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// A source file with its language's header before it, after the preprocessor. All but the header is in
/// a namespace of the file alone: of two functions of one name in two files, a linker takes one for both.
fn expand(
    here: &Path,
    sources: &Path,
    out: &Path,
    language: Language,
    file: &Path,
) -> io::Result<String> {
    let header = here.join(language.header());
    let mut text = format!("#include \"{}\"\nnamespace {{\n", header.display());
    for shared in of_extension(&sources.join("gpu"), language.shared())? {
        writeln!(text, "#include \"{}\"", shared.display()).map_err(io::Error::other)?;
    }
    writeln!(text, "#include \"{}\"\n}}", file.display()).map_err(io::Error::other)?;
    let unit = out.join(format!("{}_{}_unit.cpp", language.extension(), stem(file)));
    fs::write(&unit, text)?;
    let expanded = compiler(here).file(&unit).try_expand().map_err(io::Error::other)?;
    String::from_utf8(expanded).map_err(io::Error::other)
}

/// How each kernel of a file is called, and the table of them.
fn table(name: &str, kernels: &[Kernel]) -> String {
    let mut calls = String::new();
    let mut rows = String::new();
    for kernel in kernels {
        let Kernel { name, arguments, threads_max, call } = kernel;
        calls += &format!(
            "static void call_{name}(void* const* arguments) {{ (void)arguments; {call} }}\n"
        );
        let threads_max = threads_max.as_deref().unwrap_or("1024");
        rows += &format!("{{\"{name}\", call_{name}, {arguments}, {threads_max}}},\n");
    }
    format!(
        "\n{calls}extern const emulator::Kernel table_{name}[];\n\
         const emulator::Kernel table_{name}[] = {{\n{rows}{{nullptr, nullptr, 0, 0}}}};\n"
    )
}

/// The functions that give the tables of all files of each language.
fn all_tables(here: &Path, tables: &[(Language, Vec<String>)]) -> String {
    let mut text =
        format!("#include \"{}\"\n#include <vector>\n", here.join("include/emulator.h").display());
    for (language, names) in tables {
        let mut list = String::new();
        for name in names {
            text += &format!("extern const emulator::Kernel table_{name}[];\n");
            list += &format!("table_{name}, ");
        }
        text += &format!(
            "extern \"C\" emulator::Table sconce_{}_kernels() {{\n\
             static const std::vector<emulator::Kernel> all = [] {{\n\
             std::vector<emulator::Kernel> found;\n\
             for (const emulator::Kernel* table : std::vector<const emulator::Kernel*>{{{list}}})\n\
             for (; table->name; ++table) found.push_back(*table);\n\
             return found;\n}}();\n\
             return {{all.data(), all.size()}};\n}}\n",
            language.name()
        );
    }
    text
}
