//! Random prompts, and the edits that turn one into another.

/// Numbers that look random and are the same in every run.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635)
    }

    /// The next one, below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        // The multiplier and increment are Knuth's for a 64-bit linear congruential generator.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % bound.max(1) as u64) as usize
    }

    /// One from 1 to `most`.
    pub(crate) fn up_to(&mut self, most: usize) -> usize {
        1 + self.below(most)
    }

    /// One of `all`, which is not empty.
    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// `len` random tokens.
pub(crate) fn random_tokens(random: &mut Random, len: usize, vocabulary: u32) -> Vec<u32> {
    (0..len).map(|_| random.below(vocabulary as usize) as u32).collect()
}

/// How many tokens two prompts begin with in common.
pub(crate) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// What is done to a prompt.
#[derive(Debug, Clone, Copy)]
enum Edit {
    Repeat,
    Replace,
    Delete,
    Insert,
    Truncate,
    Extend,
    Fork,
    New,
}

const EDITS: [Edit; 8] = [
    Edit::Repeat,
    Edit::Replace,
    Edit::Delete,
    Edit::Insert,
    Edit::Truncate,
    Edit::Extend,
    Edit::Fork,
    Edit::New,
];

/// A prompt of at most `longest` tokens made of those in `past`, and what was done in words.
pub(crate) fn edited(
    random: &mut Random,
    past: &[Vec<u32>],
    vocabulary: u32,
    longest: usize,
) -> (Vec<u32>, String) {
    let edit = if past.is_empty() { Edit::New } else { *random.pick(&EDITS) };
    let mut prompt = match past {
        [] => Vec::new(),
        past => random.pick(past).clone(),
    };
    let at = depth(random, prompt.len());
    let size = random.up_to(80);
    let end = prompt.len().min(at + size);
    match edit {
        Edit::Repeat => {}
        Edit::Replace => {
            // Sometimes one token, sometimes many, and the first of them surely another.
            let end = if random.below(2) == 0 { prompt.len().min(at + 1) } else { end };
            for token in &mut prompt[at..end] {
                *token = (*token + random.up_to(vocabulary as usize - 1) as u32) % vocabulary;
            }
        }
        Edit::Delete => drop(prompt.drain(at..end)),
        Edit::Insert => {
            let inserted = random_tokens(random, size, vocabulary);
            prompt.splice(at..at, inserted);
        }
        Edit::Truncate => prompt.truncate(at),
        Edit::Extend => prompt.extend(random_tokens(random, size, vocabulary)),
        Edit::Fork => {
            let other = random.pick(past);
            prompt.truncate(at);
            prompt.extend(&other[depth(random, other.len())..]);
        }
        Edit::New => {
            let len = longest / 2 + random.below(longest / 2);
            prompt = random_tokens(random, len, vocabulary);
        }
    }
    if prompt.is_empty() {
        prompt.push(random.below(vocabulary as usize) as u32);
    }
    prompt.truncate(longest);
    (prompt, format!("{edit:?} at {at}"))
}

/// A place in a prompt: near its end half of the time, for there most edits are.
fn depth(random: &mut Random, len: usize) -> usize {
    const NEAR: usize = 80;
    let near = random.below(2) == 0 && len > NEAR;
    if near { len - random.up_to(NEAR) } else { random.below(len) }
}
