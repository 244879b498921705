//! Takes the time of work on a device: rounds in which all sides of a comparison have their turn, so
//! that what the machine does beside it meets them all.

use std::time::{Duration, Instant};

use candle_core::Device;

use super::{Outcome, Sizes};

/// Most runs of a round.
const RUNS_MAX: f64 = 256.0;

/// Share of a round in which the host still launches, from which on the device is said to wait for it.
const HOST_BOUND: f64 = 0.95;

/// How often and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    rounds: usize,
    least: Duration,
}

/// Something that takes time: the seconds of one unit of it.
pub(crate) trait Side {
    /// Gets ready: memory is mapped, graphs are made.
    fn warm_up(&mut self) -> Outcome<()>;

    /// Works for a round.
    fn round(&mut self) -> Outcome<f64>;
}

impl Clock {
    pub(crate) fn new(sizes: &Sizes) -> Self {
        Self { rounds: sizes.rounds.max(1), least: Duration::from_millis(sizes.round_ms) }
    }

    /// Work of `units` units on `device`.
    pub(crate) fn work<'a>(
        &self,
        device: &Device,
        units: usize,
        body: impl FnMut() -> Outcome<()> + 'a,
    ) -> Work<'a> {
        let (device, body) = (device.clone(), Box::new(body));
        Work { device, units, least: self.least, runs: 1, launching: Vec::new(), body }
    }

    /// Seconds of a unit of each side, in each round.
    pub(crate) fn in_turn<const N: usize>(
        &self,
        mut sides: [&mut dyn Side; N],
    ) -> Outcome<[Vec<f64>; N]> {
        let mut found = [const { Vec::new() }; N];
        for side in &mut sides {
            side.warm_up()?;
        }
        for _ in 0..self.rounds {
            for (side, found) in sides.iter_mut().zip(&mut found) {
                found.push(side.round()?);
            }
        }
        Ok(found)
    }
}

/// Work on a device, run as often as a round is long.
pub(crate) struct Work<'a> {
    device: Device,
    units: usize,
    least: Duration,
    runs: usize,
    /// Of each round, the share in which the host launched.
    launching: Vec<f64>,
    body: Box<dyn FnMut() -> Outcome<()> + 'a>,
}

impl Work<'_> {
    /// Whether the rounds took as long as the host took to launch them, so that their time is no measure
    /// of the device. The CPU computes while it launches.
    pub(crate) fn is_host_bound(&self) -> bool {
        !self.device.is_cpu() && launches_throughout(&self.launching)
    }

    /// Seconds of a run, and the share of them in which the host launched.
    fn runs(&mut self, runs: usize) -> Outcome<(f64, f64)> {
        self.device.synchronize()?;
        let start = Instant::now();
        for _ in 0..runs {
            (self.body)()?;
        }
        let launched = start.elapsed().as_secs_f64();
        self.device.synchronize()?;
        let done = start.elapsed().as_secs_f64();
        Ok((done / runs as f64, launched / done.max(1e-9)))
    }
}

impl Side for Work<'_> {
    fn warm_up(&mut self) -> Outcome<()> {
        self.runs(1)?;
        // A graph is made when a step comes again.
        self.runs(1)?;
        let (one, _) = self.runs(1)?;
        self.runs = (self.least.as_secs_f64() / one.max(1e-9)).ceil().clamp(1.0, RUNS_MAX) as usize;
        Ok(())
    }

    fn round(&mut self) -> Outcome<f64> {
        let (seconds, launching) = self.runs(self.runs)?;
        self.launching.push(launching);
        Ok(seconds / self.units as f64)
    }
}

/// Whether the host launched until the end of most rounds, by its share of each.
fn launches_throughout(shares: &[f64]) -> bool {
    median(shares) >= HOST_BOUND
}

/// The middle of some numbers, or the mean of the two in the middle; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (len, middle) if len % 2 == 1 => sorted[middle],
        (_, middle) => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// The median of the ratios within rounds.
pub(crate) fn median_ratio(above: &[f64], below: &[f64]) -> f64 {
    let ratios: Vec<f64> = above.iter().zip(below).map(|(above, below)| above / below).collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counted(Vec<f64>);

    impl Side for Counted {
        fn warm_up(&mut self) -> Outcome<()> {
            Ok(())
        }

        fn round(&mut self) -> Outcome<f64> {
            self.0.pop().ok_or_else(|| "no round left".into())
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
        assert_eq!(median_ratio(&[2.0, 9.0, 4.0], &[1.0, 3.0, 4.0]), 2.0);
    }

    #[test]
    fn sides_have_their_turn_in_every_round() {
        let clock = Clock { rounds: 3, least: Duration::ZERO };
        let (mut a, mut b) = (Counted(vec![3.0, 2.0, 1.0]), Counted(vec![6.0, 5.0, 4.0]));
        let [first, second] = clock.in_turn([&mut a, &mut b]).unwrap();
        assert_eq!((first, second), (vec![1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0]));
        assert!(clock.in_turn([&mut Counted(vec![1.0])]).is_err());
    }

    #[test]
    fn work_is_bound_by_the_host_if_most_rounds_are_launching() {
        assert!(launches_throughout(&[0.99, 0.2, 0.96]));
        assert!(!launches_throughout(&[0.99, 0.2, 0.9]));
        assert!(!launches_throughout(&[]), "no round was run");
    }

    #[test]
    fn work_is_told_by_its_unit() {
        let clock = Clock { rounds: 1, least: Duration::ZERO };
        let mut calls = 0;
        let mut work = clock.work(&Device::Cpu, 4, || {
            calls += 1;
            Ok(())
        });
        work.warm_up().unwrap();
        assert!(work.round().unwrap() >= 0.0);
        assert!(!work.is_host_bound(), "the host is the device");
        assert!((0.0..=1.0).contains(&work.launching[0]), "{:?}", work.launching);
        drop(work);
        assert_eq!(calls, 4);
    }
}
