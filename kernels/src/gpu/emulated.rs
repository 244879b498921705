//! Kernels on the CPU: while [`emulate`] runs, operators called from its thread on CPU tensors are
//! those of a GPU; after [`emulate_by_default`] those of all threads are.

use std::cell::Cell;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::OnceLock;

use candle_core::Tensor;

use super::Language;
use super::call::Grid;
use super::step::Argument;
use crate::access::{View, write};
use crate::entries::{Copies, bytes_of, bytes_of_mut};

/// What runs on threads that have chosen nothing.
static DEFAULT: OnceLock<Language> = OnceLock::new();

thread_local! {
    /// What a thread has chosen: a language, or the CPU's own operators.
    static CHOSEN: Cell<Option<Option<Language>>> = const { Cell::new(None) };
}

/// Runs `body` with operators called from this thread on CPU tensors running the kernels of
/// `language`. What was packed for the CPU cannot be used inside, nor the other way round.
pub fn emulate<R>(language: Language, body: impl FnOnce() -> R) -> R {
    choose(Some(language), body)
}

/// Runs `body` with operators called from this thread on CPU tensors running those of the CPU,
/// whatever is emulated around it or by default.
pub fn emulate_nothing<R>(body: impl FnOnce() -> R) -> R {
    choose(None, body)
}

/// Has operators on CPU tensors run the kernels of `language` on all threads of the process from now
/// on, as they do on tensors of a GPU, except in [`emulate`] and [`emulate_nothing`]. So a program
/// for a GPU is tried where there is none.
///
/// # Panics
/// If another language is the default already.
pub fn emulate_by_default(language: Language) {
    let default = *DEFAULT.get_or_init(|| language);
    assert_eq!(default, language, "the language that a process emulates by default stays");
}

fn choose<R>(choice: Option<Language>, body: impl FnOnce() -> R) -> R {
    struct Restore(Option<Option<Language>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CHOSEN.set(self.0);
        }
    }
    let _restore = Restore(CHOSEN.replace(Some(choice)));
    body()
}

/// The language that runs on this thread.
pub(super) fn language() -> Option<Language> {
    CHOSEN.get().unwrap_or_else(|| DEFAULT.get().copied())
}

/// Runs a kernel to its end.
///
/// # Safety
/// As for [`Gpu::start`](super::Gpu::start).
pub(super) unsafe fn launch(
    language: Language,
    kernel: &str,
    grid: Grid,
    arguments: &[Argument],
    lists: u64,
) -> Result<(), String> {
    let language = match language {
        Language::Cuda => sconce_gpu_emulator::Language::Cuda,
        Language::Metal => sconce_gpu_emulator::Language::Metal,
    };
    let Grid { blocks, threads, shared } = grid;
    let grid = sconce_gpu_emulator::Grid { blocks, threads, shared };
    let values: Vec<u64> = arguments.iter().map(|argument| argument.value(lists)).collect();
    let pointer = |value: &u64| std::ptr::from_ref(value).cast::<c_void>();
    let arguments: Vec<_> = values.iter().map(pointer).collect();
    // SAFETY: the caller's promise; a word is the lower half of its value.
    let ended = unsafe { sconce_gpu_emulator::launch(language, kernel, grid, &arguments) };
    ended.map_err(|error| error.to_string())
}

/// Copies between tensors of the CPU, made at once.
pub(super) struct AtOnce;

impl Copies for AtOnce {
    fn before_packing(&mut self, _lane: usize) -> Result<(), String> {
        Ok(())
    }

    fn copy_out(
        &mut self,
        _lane: usize,
        staging: &Tensor,
        parts: &mut [(Range<usize>, &mut [u8])],
    ) -> Result<(), String> {
        let copy = || {
            let view = View::new("copy_out", "staging", staging)?;
            let bytes = bytes_of(view.elements::<u32>()?);
            for (place, part) in parts {
                part.copy_from_slice(&bytes[place.clone()]);
            }
            Ok(())
        };
        copy().map_err(|error: crate::Error| error.to_string())
    }

    fn copy_in(
        &mut self,
        _lane: usize,
        staging: &Tensor,
        parts: &[(Range<usize>, &[u8])],
    ) -> Result<(), String> {
        let copied = write::<u32, _>("copy_in", staging, |words| {
            let bytes = bytes_of_mut(words);
            for (place, part) in parts {
                bytes[place.clone()].copy_from_slice(part);
            }
            Ok(())
        });
        copied.map_err(|error| error.to_string())
    }

    fn after_unpacking(&mut self, _lane: usize) -> Result<(), String> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A default would be one for all tests of this executable: dry runs of the parity table have it.
    #[test]
    fn the_innermost_choice_of_a_thread_counts_and_ends() {
        let [cuda, metal] = [Language::Cuda, Language::Metal];
        assert_eq!(language(), None);
        emulate(cuda, || {
            emulate(metal, || assert_eq!(language(), Some(metal)));
            emulate_nothing(|| {
                assert_eq!(language(), None);
                emulate(metal, || assert_eq!(language(), Some(metal)));
            });
            assert_eq!(language(), Some(cuda));
            assert_eq!(std::thread::spawn(language).join().unwrap(), None);
        });
        assert_eq!(language(), None);
    }
}
