//! Kernels in preprocessed source: found, made into functions of C++, and their calls written.
//!
//! `include/cuda.h` and `include/metal.h` turn the words that C++ does not have into `SCONCE_KERNEL`,
//! `SCONCE_BOUNDS(..)` and `SCONCE_SHARED`, which end here.

use std::cmp::Ordering;

const KERNEL: &str = "SCONCE_KERNEL";
const BOUNDS: &str = "SCONCE_BOUNDS(";
const SHARED: &str = "SCONCE_SHARED";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    Cuda,
    Metal,
}

impl Language {
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Cuda => "cu",
            Self::Metal => "metal",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    /// Extension of the files in `kernels/src/gpu` that go before each source, in the order of their
    /// names. CUDA sources include what they share; in Metal there is no folder to include from.
    pub(crate) fn shared(self) -> &'static str {
        match self {
            Self::Cuda => "cuh",
            Self::Metal => "metal",
        }
    }

    pub(crate) fn header(self) -> &'static str {
        match self {
            Self::Cuda => "include/cuda.h",
            Self::Metal => "include/metal.h",
        }
    }
}

/// A kernel and how to call it with an array of pointers to its arguments.
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Pointers that it takes.
    pub(crate) arguments: usize,
    /// An expression, where the source has one.
    pub(crate) threads_max: Option<String>,
    /// A statement.
    pub(crate) call: String,
}

pub(crate) struct Translated {
    pub(crate) text: String,
    pub(crate) kernels: Vec<Kernel>,
}

/// Makes C++ of a preprocessed source.
pub(crate) fn translate(text: &str, language: Language) -> Result<Translated, String> {
    let mut kernels = Vec::new();
    let mut out = String::new();
    let mut rest = text;
    while let Some((start, word)) = next_word(rest) {
        out += &rest[..start];
        rest = &rest[start + word.len()..];
        if word == SHARED {
            rest = shared(rest, &mut out)?;
            continue;
        }
        let mut threads_max = None;
        rest = rest.trim_start();
        loop {
            if let Some(after) = rest.strip_prefix(BOUNDS) {
                let len = balanced(after)?;
                threads_max = split(&after[..len]).first().map(|first| first.trim().to_owned());
                rest = after[len + 1..].trim_start();
            } else if let Some(after) = rest.strip_prefix("void") {
                rest = after.trim_start();
            } else {
                break;
            }
        }
        let open = rest.find('(').ok_or("a kernel without parameters")?;
        let name = rest[..open].trim().to_owned();
        let len = balanced(&rest[open + 1..])?;
        let parameters = split(&rest[open + 1..open + 1 + len]);
        let parameters: Vec<&str> =
            parameters.into_iter().filter(|p| !p.trim().is_empty()).collect();
        kernels.push(match language {
            Language::Cuda => cuda(name.clone(), threads_max, &parameters),
            Language::Metal => metal(name.clone(), threads_max, &parameters)?,
        });
        out += &format!("void {name}({})", without_attributes(&rest[open + 1..open + 1 + len]));
        rest = &rest[open + 1 + len + 1..];
    }
    out += rest;
    Ok(Translated { text: out, kernels })
}

/// Where the next of our words is.
fn next_word(text: &str) -> Option<(usize, &'static str)> {
    let found = |word: &'static str| text.find(word).map(|start| (start, word));
    [found(KERNEL), found(SHARED)].into_iter().flatten().min()
}

/// A declaration of one variable in shared memory, or the address space of a pointer.
fn shared<'a>(text: &'a str, out: &mut String) -> Result<&'a str, String> {
    let mut depth = 0;
    for (index, character) in text.char_indices() {
        match character {
            // A reference to an array: the address space is that of the elements.
            '(' if text[index + 1..].starts_with('&') => return Ok(text),
            '(' | '[' => depth += 1,
            ')' | ']' if depth > 0 => depth -= 1,
            '*' | '&' if depth == 0 => return Ok(text),
            ';' if depth == 0 => {
                let declaration = &text[..index];
                let name = declared_name(declaration)
                    .ok_or_else(|| format!("shared memory without a name: {declaration}"))?;
                *out += &guarded(declaration, name);
                return Ok(&text[index + 1..]);
            }
            ')' | ',' | '=' | '{' if depth == 0 => break,
            _ => {}
        }
    }
    let start: String = text.chars().take(60).collect();
    Err(format!("shared memory is declared one variable at a time, found {start}"))
}

/// A static variable between its guards, under its own name, and that control has passed it.
fn guarded(declaration: &str, name: &str) -> String {
    let guard = |side| format!("unsigned char guard_{side}[emulator::GUARD]");
    let (before, after) = (guard("before"), guard("after"));
    format!(
        "static struct {{ {before}; {declaration}; {after}; }} guarded_{name}; \
         auto& {name} = guarded_{name}.{name}; \
         emulator::Declared declared_{name}(\"{name}\", (void*)&{name}, sizeof({name}));"
    )
}

fn declared_name(declaration: &str) -> Option<&str> {
    let end = declaration.find('[').unwrap_or(declaration.len());
    let before = declaration[..end].trim_end();
    let start = before.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |i| i + 1);
    (start < before.len()).then(|| &before[start..])
}

fn cuda(name: String, threads_max: Option<String>, parameters: &[&str]) -> Kernel {
    let call = format!("emulator::call({name}, arguments);");
    Kernel { name, arguments: parameters.len(), threads_max, call }
}

/// Parameters of Metal say what they are given: a buffer, or where the thread is.
fn metal(name: String, threads_max: Option<String>, parameters: &[&str]) -> Result<Kernel, String> {
    let mut buffers = Vec::new();
    let mut values = Vec::new();
    for parameter in parameters {
        let wrong = || format!("{name}: what is given to the parameter `{}`?", parameter.trim());
        let (declared, attribute) = parameter.split_once("[[").ok_or_else(wrong)?;
        let attribute = attribute.split("]]").next().ok_or_else(wrong)?.trim();
        values.push(if let Some(index) = attribute.strip_prefix("buffer(") {
            let index: usize = index.trim_end_matches(')').trim().parse().map_err(|_| wrong())?;
            buffers.push(index);
            let reference = declared.contains('&');
            let kind = if reference { "Number" } else { "Buffer" };
            format!("emulator::{kind}{{arguments[{index}]}}")
        } else if attribute.starts_with(SHARED) {
            "emulator::Dynamic{}".to_owned()
        } else {
            format!("emulated_parameters::{attribute}()")
        });
    }
    buffers.sort_unstable();
    for (expected, index) in buffers.iter().enumerate() {
        match index.cmp(&expected) {
            Ordering::Equal => {}
            Ordering::Less => return Err(format!("{name}: two parameters are buffer {index}")),
            Ordering::Greater => return Err(format!("{name}: no parameter is buffer {expected}")),
        }
    }
    let call = format!("{name}({});", values.join(", "));
    Ok(Kernel { name, arguments: buffers.len(), threads_max, call })
}

/// Parameters as C++ has them, on as many lines.
fn without_attributes(parameters: &str) -> String {
    let parameters = parameters.replace(SHARED, "");
    let mut out = String::new();
    for (index, part) in parameters.split("[[").enumerate() {
        out += if index == 0 { part } else { part.split_once("]]").map_or("", |(_, rest)| rest) };
    }
    out
}

/// Length of the text up to the parenthesis that closes the one before it.
fn balanced(text: &str) -> Result<usize, String> {
    let mut depth = 0;
    for (index, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' if depth == 0 => return Ok(index),
            ')' => depth -= 1,
            _ => {}
        }
    }
    Err("a parenthesis is not closed".to_owned())
}

/// Splits at commas outside of all brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (index, character) in text.char_indices() {
        match character {
            '(' | '[' | '<' => depth += 1,
            ')' | ']' | '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}
