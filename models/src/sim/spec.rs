//! The description of a simulated model: `sim:` and options, as in
//! `sim:vocab=32000,context=4096,decode_us=2000`.

use crate::error::Error;

/// Prefix of the path of a simulated model.
const PREFIX: &str = "sim:";

/// Most completion tokens that a state can count.
const COMPLETED_MAX: u64 = 1 << 24;

/// What a simulated model does. Zero turns an option off, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimulatedSpec {
    /// `vocab`: rows of the head, at least [`VOCAB_MIN`](super::VOCAB_MIN).
    pub vocab: usize,
    /// `context`: most tokens of a sequence, at least 1.
    pub context: usize,
    /// `pages`: pages of the state pool; 0 for as many as all sequences can fill.
    pub pages: usize,
    /// `weights_bytes`: what it says its weights take; it takes nothing.
    pub weights_bytes: u64,
    /// `prefill_us`: time of each token of a segment of several, in microseconds.
    pub prefill_us: u64,
    /// `decode_us`: time of a step with segments of one token, in microseconds.
    pub decode_us: u64,
    /// `eos_after`: completion tokens before the end-of-sequence token, at most 2^24.
    pub eos_after: u64,
    /// `recurrent`: `true` for a model with a recurrent layer, whose state is in slots as well as in
    /// pages.
    pub recurrent: bool,
    /// `seed`: another seed is another model.
    pub seed: u64,
    /// `fail_at`: a step fails that holds the token of this number, from 1, of a sequence.
    pub fail_at: u64,
    /// `panic_at`: as `fail_at`, but the step panics.
    pub panic_at: u64,
    /// `crash_at`: after a step that holds the token of this number, of a sequence, the next question
    /// how large a step may be panics: outside of a forward, once for each such step.
    pub crash_at: u64,
    /// `lost_at`: from the step on that holds the token of this number, of a sequence, it fails as a
    /// model on a GPU that is lost.
    pub lost_at: u64,
    /// `nan_at`: the logits after the token of this number, and all later ones, are NaN.
    pub nan_at: u64,
    /// `load_ms`: time of the load, in milliseconds.
    pub load_ms: u64,
    /// `load_steps`: reports of progress while it is loaded, at least 1.
    pub load_steps: u64,
}

impl Default for SimulatedSpec {
    fn default() -> Self {
        Self {
            vocab: super::VOCAB_MIN,
            context: 4096,
            pages: 0,
            weights_bytes: 0,
            prefill_us: 0,
            decode_us: 0,
            eos_after: 0,
            recurrent: false,
            seed: 0,
            fail_at: 0,
            panic_at: 0,
            crash_at: 0,
            lost_at: 0,
            nan_at: 0,
            load_ms: 0,
            load_steps: 10,
        }
    }
}

impl SimulatedSpec {
    /// Reads a path that begins with `sim:`.
    ///
    /// # Errors
    /// [`Error::Option`] naming the key: an unknown one, one that comes twice, a value that is not a
    /// number in range.
    pub fn parse(path: &str) -> Result<Self, Error> {
        let options = path
            .strip_prefix(PREFIX)
            .ok_or_else(|| Error::option("path", "a path that begins with sim:", path))?;
        let mut spec = Self::default();
        let mut seen = Vec::new();
        for option in options.split(',').filter(|_| !options.is_empty()) {
            let (key, value) = option
                .split_once('=')
                .ok_or_else(|| Error::option("sim", "options of the form key=value", option))?;
            if seen.contains(&key) {
                return Err(Error::option(key, "the option once", "it twice"));
            }
            seen.push(key);
            spec.set(key, value)?;
        }
        Ok(spec)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Error> {
        let number = |least: u64, most: u64| match value.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(Error::option(key, format!("a number from {least} to {most}"), value)),
        };
        // A table of a gigabyte of logits, a day of sleep: beyond these it is a slip of the pen.
        let (rows, tokens, day) = (1 << 20, 1 << 30, 86_400_000_000);
        let flag = || value.parse().map_err(|_| Error::option(key, "true or false", value));
        match key {
            "vocab" => self.vocab = number(super::VOCAB_MIN as u64, rows)? as usize,
            "context" => self.context = number(1, tokens)? as usize,
            "pages" => self.pages = number(0, super::PAGES_MAX as u64)? as usize,
            "weights_bytes" => self.weights_bytes = number(0, u64::MAX / 2)?,
            "prefill_us" => self.prefill_us = number(0, day)?,
            "decode_us" => self.decode_us = number(0, day)?,
            "eos_after" => self.eos_after = number(0, COMPLETED_MAX)?,
            "recurrent" => self.recurrent = flag()?,
            "seed" => self.seed = number(0, u64::MAX)?,
            "fail_at" => self.fail_at = number(0, tokens)?,
            "panic_at" => self.panic_at = number(0, tokens)?,
            "crash_at" => self.crash_at = number(0, tokens)?,
            "lost_at" => self.lost_at = number(0, tokens)?,
            "nan_at" => self.nan_at = number(0, tokens)?,
            "load_ms" => self.load_ms = number(0, day / 1000)?,
            "load_steps" => self.load_steps = number(1, 10_000)?,
            _ => return Err(Error::option("sim", format!("one of {}", KEYS.join(", ")), key)),
        }
        Ok(())
    }
}

/// Every option, for the message about an unknown one.
const KEYS: [&str; 16] = [
    "vocab",
    "context",
    "pages",
    "weights_bytes",
    "prefill_us",
    "decode_us",
    "eos_after",
    "recurrent",
    "seed",
    "fail_at",
    "panic_at",
    "crash_at",
    "lost_at",
    "nan_at",
    "load_ms",
    "load_steps",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_options_it_is_the_default() {
        assert_eq!(SimulatedSpec::parse("sim:").unwrap(), SimulatedSpec::default());
    }

    #[test]
    fn every_option_is_read() {
        let path = "sim:vocab=32000,context=512,prefill_us=50,decode_us=2000,eos_after=3,seed=1";
        let expected = SimulatedSpec {
            vocab: 32_000,
            context: 512,
            prefill_us: 50,
            decode_us: 2000,
            eos_after: 3,
            seed: 1,
            ..SimulatedSpec::default()
        };
        assert_eq!(SimulatedSpec::parse(path).unwrap(), expected);
        for key in KEYS {
            let value = if key == "recurrent" { "true" } else { "300" };
            let spec = SimulatedSpec::parse(&format!("sim:{key}={value}"));
            assert_ne!(spec.unwrap(), SimulatedSpec::default(), "{key} is not read");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |path| SimulatedSpec::parse(path).unwrap_err().to_string();
        assert!(message("sim:vocabulary=300").contains("found vocabulary"));
        assert!(message("sim:vocabulary=300").contains("one of vocab, context, pages"));
        assert!(message("sim:seed=x").contains("option seed"));
        assert!(message("sim:recurrent=1").contains("expected true or false, found 1"));
        assert!(message("sim:vocab=10").contains("a number from 259"));
        assert!(message("sim:seed=1,seed=2").contains("option seed"));
        assert!(message("sim:seed").contains("found seed"));
        assert!(message("sim:seed=1,").contains("key=value"));
        assert!(message("llama.gguf").contains("sim:"));
    }
}
