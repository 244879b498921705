//! Which steps are replayed: what was launched once is remembered by its hash, what comes again is kept
//! as a graph, and both are bounded. What a graph is, the driver knows.

use std::collections::VecDeque;

use super::step::{Argument, Launch, Recording};

/// Graphs that are kept, the latest used first: a decode step has one for each number of sequences.
const GRAPHS_MAX: usize = 64;
/// Steps that are remembered as launched once. Prompts make steps that never come again, and a graph
/// costs more than it saves the first time.
const SEEN_MAX: usize = 256;

/// Steps that came before, and graphs `G` of some.
pub(super) struct Replays<G> {
    /// Hashes of steps that were launched, the latest first.
    seen: VecDeque<u64>,
    /// The latest used first.
    graphs: VecDeque<Kept<G>>,
}

/// A step with its graph. What it points to are the places of tensors, which a model keeps.
struct Kept<G> {
    hash: u64,
    launches: Vec<Launch>,
    arguments: Vec<Argument>,
    graph: G,
}

/// What is to be done with a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<'a, G> {
    /// It may never come again: its kernels are launched one by one.
    New,
    /// It has come before: a graph of it is worth its cost.
    Again,
    /// It is replayed.
    Graph(&'a G),
}

impl<G> Replays<G> {
    pub(super) fn new() -> Self {
        Self { seen: VecDeque::new(), graphs: VecDeque::new() }
    }

    /// What is to be done with a step of a hash, which equal steps share and others hardly ever.
    pub(super) fn find(&mut self, hash: u64, recording: &Recording) -> Found<'_, G> {
        if let Some(index) = self.graphs.iter().position(|kept| kept.is_of(hash, recording)) {
            let kept = self.graphs.remove(index);
            self.graphs.extend(kept);
            self.graphs.rotate_right(1);
            return Found::Graph(&self.graphs[0].graph);
        }
        if self.seen.contains(&hash) {
            return Found::Again;
        }
        self.seen.truncate(SEEN_MAX - 1);
        self.seen.push_front(hash);
        Found::New
    }

    /// Keeps the graph of a step, and lets the one go that was not used for longest where there are too
    /// many.
    pub(super) fn keep(&mut self, hash: u64, recording: &Recording, graph: G) {
        let Recording { launches, arguments, .. } = recording;
        let (launches, arguments) = (launches.clone(), arguments.clone());
        self.graphs.truncate(GRAPHS_MAX - 1);
        self.graphs.push_front(Kept { hash, launches, arguments, graph });
    }
}

impl<G> Kept<G> {
    /// Whether it is of this very step: a hash alone may be that of another.
    fn is_of(&self, hash: u64, recording: &Recording) -> bool {
        self.hash == hash
            && self.launches == recording.launches
            && self.arguments == recording.arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::call::Grid;

    /// The step of as many sequences.
    fn step(rows: u32) -> Recording {
        let grid = Grid::row(rows as usize, 32);
        let mut step = Recording::default();
        step.launches.push(Launch { op: "op", kernel: "kernel", grid, arguments: 0..1 });
        step.arguments.push(Argument::Word(rows));
        step
    }

    /// Has a step come, and says what was done: `n` launched, `c` captured, `g` replayed as the graph
    /// of this very step.
    fn come(replays: &mut Replays<u32>, rows: u32) -> char {
        come_as(replays, u64::from(rows), rows)
    }

    fn come_as(replays: &mut Replays<u32>, hash: u64, rows: u32) -> char {
        let recording = step(rows);
        match replays.find(hash, &recording) {
            Found::New => 'n',
            Found::Again => {
                replays.keep(hash, &recording, rows);
                'c'
            }
            Found::Graph(graph) => {
                assert_eq!(*graph, rows);
                'g'
            }
        }
    }

    fn all(replays: &mut Replays<u32>, steps: impl IntoIterator<Item = u32>) -> String {
        steps.into_iter().map(|rows| come(replays, rows)).collect()
    }

    #[test]
    fn a_step_is_launched_then_captured_then_replayed() {
        let mut replays = Replays::new();
        assert_eq!(all(&mut replays, [1, 1, 1, 2, 1, 2, 2, 1]), "ncgngcgg");
    }

    #[test]
    fn steps_of_one_hash_are_told_apart() {
        let mut replays = Replays::new();
        let mut of = |rows| come_as(&mut replays, 7, rows);
        assert_eq!([of(1), of(1), of(2), of(2), of(1)], ['n', 'c', 'c', 'g', 'g']);
        // Of a grid alone, and of an argument alone.
        let mut replays: Replays<u32> = Replays::new();
        replays.keep(7, &step(1), 1);
        let [mut wider, mut other, mut listed] = [(); 3].map(|()| step(1));
        wider.launches = step(2).launches;
        assert_eq!(replays.find(7, &wider), Found::New);
        other.arguments = step(2).arguments;
        assert_eq!(replays.find(7, &other), Found::Again);
        // What lists hold lies outside of graphs.
        listed.lists = vec![1, 2, 3];
        assert_eq!(replays.find(7, &listed), Found::Graph(&1));
    }

    #[test]
    fn the_graph_that_was_not_used_for_longest_goes_first() {
        let max = GRAPHS_MAX as u32;
        let mut replays = Replays::new();
        for rows in 0..max {
            assert_eq!(all(&mut replays, [rows, rows]), "nc");
        }
        assert_eq!(come(&mut replays, 0), 'g');
        assert_eq!(all(&mut replays, [max, max]), "nc");
        assert_eq!(replays.graphs.len(), GRAPHS_MAX);
        // Step 0 was used since, step 1 was not. It is known as seen, and so a graph at once.
        assert_eq!(all(&mut replays, [0, 2, 1]), "ggc");
        assert_eq!(all(&mut replays, [3, 0, 2, 1, max]), "cgggg");
        assert_eq!(replays.graphs.len(), GRAPHS_MAX);
    }

    #[test]
    fn steps_that_never_come_again_are_forgotten_and_cost_no_graph() {
        let max = SEEN_MAX as u32;
        let mut replays = Replays::new();
        assert!(all(&mut replays, 0..=max).chars().all(|done| done == 'n'));
        assert_eq!((replays.seen.len(), replays.graphs.len()), (SEEN_MAX, 0));
        // Step 0 is out of sight, and takes the place of step 1.
        assert_eq!(all(&mut replays, [0, 2, 1]), "ncn");
        assert_eq!(replays.seen.len(), SEEN_MAX);
    }

    #[test]
    fn a_capture_that_failed_is_tried_again() {
        let mut replays: Replays<u32> = Replays::new();
        assert_eq!(replays.find(3, &step(3)), Found::New);
        assert_eq!(replays.find(3, &step(3)), Found::Again);
        assert_eq!(replays.find(3, &step(3)), Found::Again);
    }
}
