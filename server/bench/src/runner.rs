//! Takes the time of calls, one case after another, and knows what the machine could have done.

use std::ops::ControlFlow;
use std::time::Instant;

use sconce_kernels::Peaks;
use sconce_kernels::peaks::last_level_cache_bytes;

use crate::error::Error;
use crate::operators::Operator;
use crate::options::Options;

/// Seconds that a run of calls takes at least, so that the clock's own cost does not count.
const RUN_SECONDS: f64 = 100e-6;
/// Most calls of a run.
const CALLS_MAX: usize = 4096;
/// Times the last-level cache that the copies of a weight or state fill together.
const CACHE_FACTOR: usize = 2;
/// Size of the last-level cache where the machine does not say.
const CACHE_ASSUMED: usize = 32 << 20;
/// Most copies, and most bytes of them all beyond the first.
const COPIES_MAX: usize = 4096;
const COPIES_BYTES_MAX: usize = 1 << 30;

/// What a call does at least.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Bytes that are read and written: of weights and state, or of rows where there is neither.
    pub bytes: f64,
    /// Multiply-adds of 8-bit integers.
    pub integer_macs: f64,
    /// Multiply-adds of f32.
    pub float_macs: f64,
}

/// What bounds a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Reading memory.
    Read,
    /// Multiply-adds.
    Compute,
}

impl Bound {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Compute => "compute",
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// Sizes, and what else tells a case from others of its operator.
    pub shape: String,
    /// Format of the weights, if there are any.
    pub format: Option<&'static str>,
    /// How they read activations.
    pub activations: Option<&'static str>,
    /// Rows of the step.
    pub rows: usize,
    /// Tokens before the first row, for operators that see them.
    pub depth: Option<usize>,
}

/// The times of one case.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// The operator.
    pub operator: Operator,
    /// Which of its cases.
    pub labels: Labels,
    /// What a call does.
    pub work: Work,
    /// Seconds of a call, in each repetition.
    pub seconds: Vec<f64>,
}

impl Work {
    /// Seconds that a call takes at the peaks of the machine, and what bounds it: the roofline of
    /// Williams, Waterman and Patterson (2009). Integers and f32 share the same units, so their
    /// times add up.
    pub fn least_seconds(&self, peaks: &Peaks) -> (f64, Bound) {
        let read = self.bytes / peaks.read_bytes;
        let compute = self.integer_macs / peaks.integer_macs + self.float_macs / peaks.float_macs;
        if read >= compute { (read, Bound::Read) } else { (compute, Bound::Compute) }
    }
}

/// Runs cases and hands on what they took.
pub(crate) struct Runner<'a> {
    options: &'a Options,
    heard: &'a mut dyn FnMut(Measurement) -> ControlFlow<()>,
    measured: usize,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(
        options: &'a Options,
        heard: &'a mut dyn FnMut(Measurement) -> ControlFlow<()>,
    ) -> Self {
        Self { options, heard, measured: 0 }
    }

    /// Cases that were timed so far.
    pub(crate) fn measured(&self) -> usize {
        self.measured
    }

    /// What is wanted.
    pub(crate) fn options(&self) -> &'a Options {
        self.options
    }

    /// How many copies of something of `bytes` bytes take turns, so that none is in a cache when
    /// its turn comes.
    pub(crate) fn copies(&self, bytes: usize) -> usize {
        if !self.options.cold {
            return 1;
        }
        let cache = last_level_cache_bytes().unwrap_or(CACHE_ASSUMED);
        let wanted = cache.saturating_mul(CACHE_FACTOR).min(COPIES_BYTES_MAX);
        (wanted / bytes.max(1) + 1).min(COPIES_MAX)
    }

    /// Times `call`, which is told how many calls there were before.
    ///
    /// # Errors
    /// The call failed, or nobody wants to hear more.
    pub(crate) fn time(
        &mut self,
        operator: Operator,
        labels: Labels,
        work: Work,
        mut call: impl FnMut(usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut done = 0;
        let mut run = |calls: usize| -> Result<f64, Error> {
            let start = Instant::now();
            for _ in 0..calls {
                call(done)?;
                done += 1;
            }
            Ok(start.elapsed().as_secs_f64() / calls as f64)
        };
        // The first call maps memory and wakes threads.
        run(1)?;
        let calls = (RUN_SECONDS / run(1)?.max(1e-9)).ceil().clamp(1.0, CALLS_MAX as f64) as usize;
        let seconds =
            (0..self.options.repetitions).map(|_| run(calls)).collect::<Result<Vec<_>, _>>()?;
        self.measured += 1;
        match (self.heard)(Measurement { operator, labels, work, seconds }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }
}

#[cfg(test)]
mod tests {
    use sconce_kernels::Isa;

    use super::*;

    #[test]
    fn the_slower_of_reading_and_computing_bounds() {
        let (read_bytes, float_macs, integer_macs) = (10.0, 4.0, 8.0);
        let peaks = Peaks { isa: Isa::Portable, threads: 1, read_bytes, float_macs, integer_macs };
        let work = Work { bytes: 20.0, integer_macs: 8.0, float_macs: 2.0 };
        assert_eq!(work.least_seconds(&peaks), (2.0, Bound::Read));
        let work = Work { integer_macs: 16.0, ..work };
        assert_eq!(work.least_seconds(&peaks), (2.5, Bound::Compute));
    }

    #[test]
    fn copies_fill_the_caches_unless_they_shall_be_warm() {
        let cold = Options::default();
        let copies = |options: &Options, bytes| {
            Runner::new(options, &mut |_| ControlFlow::Continue(())).copies(bytes)
        };
        let cache = last_level_cache_bytes().unwrap_or(CACHE_ASSUMED);
        let few = copies(&cold, 1 << 20);
        assert!(few << 20 > cache.min(COPIES_BYTES_MAX) && few <= COPIES_MAX);
        assert_eq!(copies(&cold, 1), COPIES_MAX);
        assert_eq!(copies(&cold, usize::MAX), 1);
        let warm = Options { cold: false, ..Options::default() };
        assert_eq!(copies(&warm, 1), 1);
    }

    #[test]
    fn every_repetition_is_a_time_and_who_has_heard_enough_ends_it() {
        let options = Options { repetitions: 3, ..Options::default() };
        let (mut calls, mut found) = (Vec::new(), Vec::new());
        let mut heard = |measurement| {
            found.push(measurement);
            ControlFlow::Break(())
        };
        let mut runner = Runner::new(&options, &mut heard);
        let call = |index| {
            calls.push(index);
            Ok(())
        };
        let ended = runner.time(Operator::Rope, Labels::default(), Work::default(), call);
        assert!(matches!(ended, Err(Error::Stopped)) && runner.measured() == 1);
        assert_eq!(calls, (0..calls.len()).collect::<Vec<_>>());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].seconds.len(), 3);
        assert!(found[0].seconds.iter().all(|seconds| *seconds >= 0.0));
    }
}
