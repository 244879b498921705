//! Traces: what is asked of a cache, in which order. Made from a seed, or read from a file.

use std::collections::BTreeMap;

/// A stretch of tokens: its number decides what they are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) number: u64,
    pub(crate) tokens: usize,
}

/// A prompt, and how it was answered.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The prompt; each piece but the first is a message.
    pub(crate) prompt: Vec<Piece>,
    pub(crate) answer: Piece,
}

/// Requests in the order of their arrival.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) name: String,
    pub(crate) requests: Vec<Request>,
}

impl Piece {
    fn write(self, into: &mut Vec<u32>) {
        let mut random = Random(self.number);
        into.extend((0..self.tokens).map(|_| random.next() as u32 >> 1));
    }
}

impl Request {
    /// The tokens of the prompt and then those of the answer, into `into`; the ends of its messages.
    pub(crate) fn write(&self, into: &mut Vec<u32>) -> Vec<usize> {
        into.clear();
        let mut ends = Vec::new();
        for piece in &self.prompt {
            piece.write(into);
            ends.push(into.len());
        }
        self.answer.write(into);
        ends
    }

    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt.iter().map(|piece| piece.tokens).sum()
    }
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low)
    }

    fn piece(&mut self, low: usize, high: usize) -> Piece {
        Piece { number: self.next(), tokens: self.between(low, high) }
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Takes requests from sources that go on at their own pace, `active` of them at a time.
fn interleave(
    random: &mut Random,
    count: usize,
    active: usize,
    source: &mut dyn FnMut(&mut Random) -> Vec<Request>,
) -> Vec<Request> {
    let mut running: Vec<std::vec::IntoIter<Request>> = Vec::new();
    let mut requests = Vec::with_capacity(count);
    while requests.len() < count {
        if running.len() < active {
            running.push(source(random).into_iter());
            continue;
        }
        // Some are quick, some slow: the smaller of two draws.
        let one = random.below(active).min(random.below(active));
        match running[one].next() {
            Some(request) => requests.push(request),
            None => _ = running.swap_remove(one),
        }
    }
    requests
}

/// A conversation: a system prompt that many share, and then turns.
fn conversation(random: &mut Random, systems: &[Piece]) -> Vec<Request> {
    // A few system prompts are common, most are not.
    let system = systems[random.below(systems.len()).min(random.below(systems.len()))];
    let (mut prompt, mut requests) = (vec![system], Vec::new());
    while requests.len() < 20 && (requests.is_empty() || random.chance(80)) {
        prompt.push(random.piece(30, 500));
        let answer = random.piece(60, 800);
        requests.push(Request { prompt: prompt.clone(), answer });
        prompt.push(answer);
    }
    requests
}

/// An agent: long instructions that all of a kind share, many steps with the output of tools, and
/// now and then a step back from which it tries something else.
fn agent(random: &mut Random, kinds: &[Piece]) -> Vec<Request> {
    let mut prompt = vec![kinds[random.below(kinds.len())], random.piece(50, 2000)];
    let mut requests = Vec::new();
    let steps = random.between(8, 50);
    for _ in 0..steps {
        if prompt.len() > 6 && random.chance(15) {
            let back = random.between(2, prompt.len());
            prompt.truncate(back);
        }
        let answer = random.piece(30, 300);
        requests.push(Request { prompt: prompt.clone(), answer });
        prompt.push(answer);
        prompt.push(random.piece(50, 1500));
    }
    requests
}

/// The traces made from a seed, `count` requests each.
pub(crate) fn generated(seed: u64, count: usize) -> Vec<Trace> {
    let mut random = Random(seed);
    let systems: Vec<_> = (0..24).map(|_| random.piece(200, 2500)).collect();
    let kinds: Vec<_> = (0..4).map(|_| random.piece(4000, 12_000)).collect();
    let template = random.piece(200, 201);
    let chat = |random: &mut Random, active| {
        interleave(random, count, active, &mut |random| conversation(random, &systems))
    };
    let multi_turn = chat(&mut random, 150);
    let agents = interleave(&mut random, count, 16, &mut |random| agent(random, &kinds));
    // Two of three requests are documents that nobody asks about again.
    let mut talk = chat(&mut random, 60).into_iter();
    let scan = (0..count)
        .filter_map(|_| {
            if random.chance(33) {
                return talk.next();
            }
            let prompt = vec![template, random.piece(2000, 8000)];
            Some(Request { prompt, answer: random.piece(50, 200) })
        })
        .collect();
    let mixed = interleave(&mut random, count, 100, &mut |random| match random.below(10) {
        0 => agent(random, &kinds),
        1..=4 => conversation(random, &systems),
        _ => {
            let prompt = vec![template, random.piece(1000, 6000)];
            vec![Request { prompt, answer: random.piece(50, 200) }]
        }
    });
    [("multi-turn", multi_turn), ("agents", agents), ("scan", scan), ("mixed", mixed)]
        .map(|(name, requests)| Trace { name: name.to_owned(), requests })
        .into()
}

/// Reads a public trace in the form of Mooncake's and Qwen-Bailian's: a JSON object a line, with
/// `input_length`, `output_length` and `hash_ids`, one for each block of the prompt. The size of a
/// block is the one that all of the lengths agree with.
pub(crate) fn read(path: &str, count: usize) -> Result<Trace, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let mut lines = Vec::new();
    for (number, line) in
        text.lines().filter(|line| !line.trim().is_empty()).take(count).enumerate()
    {
        let wrong = |what: &str| format!("{path}, line {}: {what}", number + 1);
        let line: BTreeMap<String, serde_json::Value> =
            serde_json::from_str(line).map_err(|error| wrong(&error.to_string()))?;
        let number = |key: &str| line.get(key).and_then(serde_json::Value::as_u64);
        let length = |key| number(key).map(|tokens| tokens as usize);
        let ids = line.get("hash_ids").and_then(serde_json::Value::as_array);
        let ids = ids.ok_or_else(|| wrong("expected a list `hash_ids`"))?;
        let ids: Option<Vec<u64>> = ids.iter().map(serde_json::Value::as_u64).collect();
        let ids = ids.ok_or_else(|| wrong("expected numbers in `hash_ids`"))?;
        let input = length("input_length").ok_or_else(|| wrong("expected `input_length`"))?;
        lines.push((ids, input, length("output_length").unwrap_or(0)));
    }
    let agrees =
        |block: &usize| lines.iter().all(|(ids, input, _)| ids.len() == input.div_ceil(*block));
    let block = [16, 32, 64, 128, 256, 512, 1024].into_iter().find(agrees);
    let block = block.ok_or_else(|| format!("{path}: no size of blocks fits all lengths"))?;
    let requests = lines.iter().enumerate().map(|(number, (ids, input, output))| {
        let last = input - (ids.len().max(1) - 1) * block;
        let pieces = ids.iter().enumerate().map(|(index, &number)| Piece {
            number,
            tokens: if index + 1 == ids.len() { last } else { block },
        });
        let answer = Piece { number: !(number as u64), tokens: *output };
        Request { prompt: pieces.collect(), answer }
    });
    let name = std::path::Path::new(path).file_name().unwrap_or_default();
    Ok(Trace { name: name.to_string_lossy().into_owned(), requests: requests.collect() })
}
