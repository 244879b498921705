//! All launches of a step, recorded before the first one is submitted. A decode step of a deep model
//! is hundreds of small kernels; a GPU starts them as one graph if they are the same as before. What
//! changes from step to step is in lists, which lie at places of their own that do not move.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;

use candle_core::Device;

use super::Gpu;
use super::call::Grid;
use crate::error::Error;

/// Most words of all lists of a step.
pub(super) const LIST_WORDS_MAX: usize = 4 << 20;
/// Places of lists are this many words or a power of two of them: a list that grows by a few words
/// stays where it is.
const LIST_WORDS_MIN: usize = 64;
/// Lists that a new one is compared with, the latest first: layers of a step pass the same few.
const LISTS_COMPARED: usize = 16;

/// What a kernel is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Argument {
    /// Where an operand starts.
    #[cfg_attr(
        not(any(feature = "cuda", feature = "emulate")),
        expect(dead_code, reason = "no GPU of this build takes addresses")
    )]
    Address(u64),
    /// The same, where a GPU takes buffers and offsets.
    #[cfg(feature = "metal")]
    Buffer(super::metal::Place),
    /// A number of 32 bits.
    Word(u32),
    /// Where a list of the step starts, in words from the start of all lists.
    List(u32),
}

impl Argument {
    /// What the kernel is passed, a word in the lower half, where `lists` is where the lists of the
    /// step start.
    #[cfg_attr(not(any(feature = "cuda", feature = "emulate")), expect(dead_code))]
    pub(super) fn value(self, lists: u64) -> u64 {
        match self {
            Self::Address(address) => address,
            // Metal's own, which it is given as it is.
            #[cfg(feature = "metal")]
            Self::Buffer(_) => 0,
            Self::Word(word) => u64::from(word),
            Self::List(place) => lists + u64::from(place) * 4,
        }
    }
}

/// A launch, in the terms of a recording.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Launch {
    pub(crate) op: &'static str,
    pub(crate) kernel: &'static str,
    pub(crate) grid: Grid,
    /// Its arguments among those of the recording.
    pub(crate) arguments: Range<usize>,
}

/// The launches of a step.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    pub(crate) launches: Vec<Launch>,
    pub(crate) arguments: Vec<Argument>,
    /// All lists, each at its place.
    pub(crate) lists: Vec<u32>,
    /// Operators and places of the lists that came last.
    recent: VecDeque<(&'static str, Range<usize>)>,
}

impl Recording {
    fn clear(&mut self) {
        self.launches.clear();
        self.arguments.clear();
        self.lists.clear();
        self.recent.clear();
    }

    /// The place of a list, where the operator has an equal one already if there is one; none if there
    /// is no room. Lists of different operators that happen to be equal in a step are not in the next.
    fn list(&mut self, op: &'static str, words: &[u32]) -> Option<u32> {
        let equal = |(of, place): &&(&'static str, Range<usize>)| {
            *of == op && &self.lists[place.clone()] == words
        };
        if let Some((_, place)) = self.recent.iter().find(equal) {
            return Some(place.start as u32);
        }
        let start = self.lists.len();
        let room = words.len().max(LIST_WORDS_MIN).next_power_of_two();
        if start + room > LIST_WORDS_MAX {
            return None;
        }
        self.lists.extend_from_slice(words);
        self.lists.resize(start + room, 0);
        self.recent.truncate(LISTS_COMPARED - 1);
        self.recent.push_front((op, start..start + words.len()));
        Some(start as u32)
    }
}

thread_local! {
    /// The step that is being recorded.
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
    /// The memory of the last one.
    static SPARE: RefCell<Recording> = RefCell::new(Recording::default());
}

/// Runs `body`, the operators of a step. On a GPU nothing runs before it has returned: then all that
/// it launched is submitted at once. It must not read what they write, and what they read and write
/// must live until the next step's end. Nothing is submitted if it fails. On the CPU it just runs.
///
/// # Errors
/// Those of `body`; a kernel that is missing or fails.
pub fn step<T, E: From<Error>>(
    device: &Device,
    body: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    /// Ends the recording, however the body ends.
    struct Recorded;
    impl Recorded {
        fn take(&self) -> Recording {
            RECORDING.take().unwrap_or_default()
        }
    }
    impl Drop for Recorded {
        fn drop(&mut self) {
            RECORDING.set(None);
        }
    }
    let Some(gpu) = Gpu::of_device(device) else { return body() };
    let mut recording = SPARE.take();
    recording.clear();
    RECORDING.set(Some(recording));
    let recorded = Recorded;
    let result = body()?;
    let recording = recorded.take();
    // SAFETY: operators gave their kernels what these take, and the caller keeps it.
    let submitted = unsafe { gpu.submit(&recording) };
    SPARE.set(recording);
    submitted?;
    Ok(result)
}

/// Where a list of the step that is being recorded will be; none outside of steps.
pub(super) fn list(op: &'static str, words: &[u32]) -> Option<Result<u32, Error>> {
    RECORDING.with_borrow_mut(|recording| {
        let place = recording.as_mut()?.list(op, words);
        Some(place.ok_or_else(|| Error::Shape {
            op,
            operand: "lists",
            expected: format!("at most {LIST_WORDS_MAX} words in a step"),
            found: format!("{} more", words.len()),
        }))
    })
}

/// Records a launch; false outside of steps.
pub(super) fn record(
    op: &'static str,
    kernel: &'static str,
    grid: Grid,
    arguments: &[Argument],
) -> bool {
    RECORDING.with_borrow_mut(|recording| {
        let Some(recording) = recording.as_mut() else { return false };
        let start = recording.arguments.len();
        recording.arguments.extend_from_slice(arguments);
        let arguments = start..recording.arguments.len();
        recording.launches.push(Launch { op, kernel, grid, arguments });
        true
    })
}

/// The launches of a step, for tests: how many there are, and whether those of two steps are equal, so
/// that a graph of the first would be the second.
#[cfg(feature = "emulate")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedStep {
    launches: Vec<Launch>,
    arguments: Vec<Argument>,
}

#[cfg(feature = "emulate")]
impl RecordedStep {
    /// Names of the operators whose kernels were launched, in their order.
    pub fn operators(&self) -> Vec<&'static str> {
        self.launches.iter().map(|launch| launch.op).collect()
    }
}

/// What the last step recorded that ended on this thread; nothing if there was none.
#[cfg(feature = "emulate")]
pub fn last_step() -> RecordedStep {
    SPARE.with_borrow(|recording| RecordedStep {
        launches: recording.launches.clone(),
        arguments: recording.arguments.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lists_of_an_operator_share_a_place_and_a_growing_one_keeps_its() {
        let mut recording = Recording::default();
        let tables: [Vec<u32>; 2] = [(0..70).collect(), vec![7; 3]];
        assert_eq!(recording.list("op", &tables[0]), Some(0));
        assert_eq!(recording.list("op", &tables[1]), Some(128));
        assert_eq!(recording.list("op", &tables[0]), Some(0));
        assert_eq!(recording.list("other", &tables[1]), Some(192));
        assert_eq!(recording.list("op", &[7; 4]), Some(256));
        assert_eq!(recording.list("op", &[]), Some(320));
        assert_eq!(recording.lists[128..131], [7; 3]);
        recording.clear();
        assert_eq!(recording.list("op", &(0..100).collect::<Vec<_>>()), Some(0));
        assert_eq!(recording.list("op", &[7; 9]), Some(128));
    }

    #[test]
    fn lists_without_room_are_refused() {
        let mut recording = Recording::default();
        assert_eq!(recording.list("op", &vec![1; LIST_WORDS_MAX]), Some(0));
        assert_eq!(recording.list("op", &[2]), None);
    }

    #[test]
    fn outside_of_a_step_nothing_is_recorded() {
        assert!(list("op", &[1]).is_none());
        assert!(!record("op", "kernel", Grid::row(1, 32), &[]));
    }

    #[cfg(feature = "emulate")]
    mod emulated {
        use candle_core::Tensor;

        use super::*;
        use crate::gpu::{Language, emulate};
        use crate::rms_norm;

        fn vector(values: [f32; 2]) -> Tensor {
            Tensor::new(&[values], &Device::Cpu).unwrap()
        }

        #[test]
        fn a_step_runs_when_its_body_has_returned_and_not_if_it_failed() {
            let (x, weight) = (vector([3.0, 4.0]), Tensor::new(&[1_f32, 1.0], &Device::Cpu));
            let (out, weight) = (vector([9.0, 9.0]), weight.unwrap());
            let values = || out.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for language in [Language::Cuda, Language::Metal] {
                emulate(language, || {
                    let failed: Result<(), Error> = step(&Device::Cpu, || {
                        rms_norm(&out, &x, &weight, 0.0, 1)?;
                        rms_norm(&out, &out, &weight, 0.0, 1)
                    });
                    assert!(matches!(failed, Err(Error::Aliased { .. })));
                    assert_eq!(values(), [9.0, 9.0]);
                    step(&Device::Cpu, || {
                        rms_norm(&out, &x, &weight, 0.0, 1)?;
                        assert_eq!(values(), [9.0, 9.0]);
                        Ok::<(), Error>(())
                    })
                    .unwrap();
                    assert!((values()[0] - 0.848_528).abs() < 1e-5);
                    crate::write_rows(&out, &[9.0, 9.0]).unwrap();
                });
            }
        }
    }
}
