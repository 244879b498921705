//! Samples of steps for traces: of every so many steps of a model, the slowest of each phase, and whose
//! requests were in it. One picked without looking would show any step but the one that was slow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::meter::Phase;

/// Steps of one phase of which the slowest is told.
pub(crate) const STEP_WINDOW_STEPS: u32 = 64;

/// How long after its beginning a step waits for slower ones, while its model has further steps.
pub(crate) const STEP_WINDOW_TIME: Duration = Duration::from_secs(10);

/// Samples that wait for their reader; further ones are dropped.
pub(crate) const STEP_SAMPLES_MAX: usize = 64;

/// Which span a request is in somebody's trace, by the ids of W3C Trace Context. The engine reads
/// nothing in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceMark {
    /// The trace.
    pub trace: [u8; 16],
    /// The span.
    pub span: [u8; 8],
}

/// A step that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What it evaluated.
    pub phase: Phase,
    /// When its forward began.
    pub began: Instant,
    /// From then until its last token was sent.
    pub time: Duration,
    /// Tokens in it.
    pub tokens: usize,
    /// Sequences in it.
    pub sequences: usize,
}

/// The slowest of some steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSample {
    /// Name of the model.
    pub model: String,
    /// The step.
    pub step: Step,
    /// Marks of the requests in it, each once; at least one.
    pub requests: Vec<TraceMark>,
    /// How many steps it is the slowest of: those of its model and phase since the sample before, as
    /// far as a request with a mark was in them.
    pub of: u32,
}

/// Who reads samples, if anybody does.
pub(crate) type StepReader = Arc<Mutex<Option<mpsc::Sender<StepSample>>>>;

/// The slowest steps of a model since those that were told. What is left is told when it is dropped.
#[derive(Debug)]
pub(crate) struct StepWindows {
    model: String,
    reader: StepReader,
    slowest: [Option<StepSample>; Phase::ALL.len()],
}

impl StepWindows {
    pub(crate) fn new(model: &str, reader: StepReader) -> Self {
        Self { model: model.to_owned(), reader, slowest: Phase::ALL.map(|_| None) }
    }

    /// A step is done, with requests of these marks; without any there is nothing to tell of it.
    pub(crate) fn see(&mut self, step: Step, marks: impl Iterator<Item = TraceMark>) {
        let mut marks = marks.peekable();
        if marks.peek().is_some() {
            self.compare(step, marks);
        }
        // Those that wait get older with any step.
        let now = step.began + step.time;
        self.tell(|sample| {
            let age = now.saturating_duration_since(sample.step.began);
            sample.of >= STEP_WINDOW_STEPS || age >= STEP_WINDOW_TIME
        });
    }

    fn compare(&mut self, step: Step, marks: impl Iterator<Item = TraceMark>) {
        let none = || StepSample { model: self.model.clone(), step, requests: Vec::new(), of: 0 };
        let sample = self.slowest[step.phase as usize].get_or_insert_with(none);
        sample.of += 1;
        if sample.of == 1 || sample.step.time < step.time {
            sample.step = step;
            sample.requests.clear();
            for mark in marks {
                // Completions of one request have one mark.
                if !sample.requests.contains(&mark) {
                    sample.requests.push(mark);
                }
            }
        }
    }

    /// Tells what there is: no step follows for now.
    pub(crate) fn close(&mut self) {
        self.tell(|_| true);
    }

    fn tell(&mut self, is_due: impl Fn(&StepSample) -> bool) {
        for slowest in &mut self.slowest {
            if let Some(sample) = slowest.take_if(|sample| is_due(sample))
                && let Some(reader) = &*self.reader.lock()
            {
                // A reader that is slow, or gone, misses samples and holds nobody up.
                drop(reader.try_send(sample));
            }
        }
    }
}

impl Drop for StepWindows {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn mark(number: u8) -> TraceMark {
        TraceMark { trace: [number; 16], span: [number; 8] }
    }

    /// Windows, who reads them, and a time to count from.
    fn windows() -> (StepWindows, mpsc::Receiver<StepSample>, Instant) {
        let (sender, samples) = mpsc::channel(STEP_SAMPLES_MAX);
        let reader = Arc::new(Mutex::new(Some(sender)));
        (StepWindows::new("m", reader), samples, Instant::now())
    }

    fn step(phase: Phase, began: Instant, millis: u64) -> Step {
        Step { phase, began, time: Duration::from_millis(millis), tokens: 3, sequences: 2 }
    }

    #[test]
    fn of_many_steps_the_slowest_of_each_phase_is_told() {
        let (mut windows, mut samples, now) = windows();
        let slow = STEP_WINDOW_STEPS / 2;
        for number in 0..STEP_WINDOW_STEPS {
            assert!(samples.try_recv().is_err(), "step {number}");
            let millis = if number == slow { 30 } else { 20 };
            let marks = [mark(number as u8), mark(number as u8), mark(0)];
            windows.see(step(Phase::Decode, now, millis), marks.into_iter());
            if number == 0 {
                windows.see(step(Phase::Prefill, now, 500), marks.into_iter());
            }
        }
        let sample = samples.try_recv().unwrap();
        assert_eq!(sample.step, step(Phase::Decode, now, 30));
        assert_eq!(sample.requests, [mark(slow as u8), mark(0)]);
        assert_eq!((sample.of, &*sample.model), (STEP_WINDOW_STEPS, "m"));
        assert!(samples.try_recv().is_err(), "there may be a slower prefill");
        drop(windows);
        let sample = samples.try_recv().unwrap();
        assert_eq!((sample.step.phase, sample.of), (Phase::Prefill, 1));
        assert!(samples.try_recv().is_err(), "no decode since");
    }

    #[test]
    fn a_step_waits_for_slower_ones_for_a_bounded_time() {
        let (mut windows, mut samples, now) = windows();
        let marks = || [mark(1)].into_iter();
        windows.see(step(Phase::Prefill, now, 5), marks());
        let before = now + STEP_WINDOW_TIME - Duration::from_millis(2);
        windows.see(step(Phase::Decode, before, 1), marks());
        assert!(samples.try_recv().is_err());
        windows.see(step(Phase::Decode, before, 2), marks());
        assert_eq!(samples.try_recv().unwrap().step.phase, Phase::Prefill);
        assert!(samples.try_recv().is_err(), "the decode is young");
        windows.close();
        assert_eq!(samples.try_recv().unwrap().of, 2);
        windows.see(step(Phase::Prefill, now, 5), marks());
        windows.see(step(Phase::Decode, now + STEP_WINDOW_TIME, 1), std::iter::empty());
        let sample = samples.try_recv().unwrap();
        assert_eq!(sample.step.phase, Phase::Prefill, "nobody traces the decode, and it counts");
    }

    #[test]
    fn what_nobody_traces_or_reads_is_not_told() {
        let (mut windows, mut samples, now) = windows();
        windows.see(step(Phase::Decode, now, 5), std::iter::empty());
        windows.close();
        assert!(samples.try_recv().is_err());
        for _ in 0..2 * STEP_SAMPLES_MAX {
            windows.see(step(Phase::Decode, now, 5), [mark(1)].into_iter());
            windows.close();
        }
        let kept = std::iter::from_fn(|| samples.try_recv().ok()).count();
        assert_eq!(kept, STEP_SAMPLES_MAX);
    }
}
