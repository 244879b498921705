//! The text of one model: tokenizer, chat template and sampling defaults of its checkpoint.
//!
//! Everything here computes and nothing waits; callers take large texts to a thread of their own.

use std::path::Path;

use sconce_engine::Sampling;
use sconce_models::checkpoint::{Checkpoint, GenerationConfig, GgufTokenizer, TokenizerSource};
use sconce_text::{
    ChatRequest, ChatTemplate, DetokenizeOptions, EncodeOptions, GgufVocabulary, MarkedPrompt,
    StopMatcher, TextError, Tokenizer, TokenizerConfig,
};
use serde_json::Value;

use super::sim;
use crate::completion::{ChatCall, CompletionCall, Output};
use crate::error::CallError;

/// Largest `tokenizer.json` that is read; the largest known have some 40 MB.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// See the module.
#[derive(Debug)]
pub struct ModelText {
    /// `None` for a checkpoint that brings none; it takes and gives tokens only.
    tokenizer: Option<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    sampling_defaults: Sampling,
}

/// A prompt in tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Where messages end among them, if the prompt came as chat: ascending, from 1 to the number
    /// of tokens, at most [`BOUNDARIES_MAX`](sconce_text::chat_template::BOUNDARIES_MAX).
    pub boundaries: Vec<usize>,
}

impl From<Vec<u32>> for EncodedPrompt {
    /// A prompt without messages.
    fn from(ids: Vec<u32>) -> Self {
        Self { ids, boundaries: Vec::new() }
    }
}

/// Refuses a path at which nothing is, or something that could keep its reader waiting for ever, as
/// a pipe does.
pub(super) fn expect_checkpoint(path: &str) -> Result<(), CallError> {
    if sim::is_simulated(path) {
        return Ok(());
    }
    if let Ok(found) = Path::new(path).metadata() {
        if found.is_file() || found.is_dir() {
            return Ok(());
        }
        let problem = format!("expected a directory or a .gguf file, found neither at {path}");
        return Err(CallError::field("path", problem));
    }
    let problem = format!("expected a directory or a .gguf file, found nothing at {path}");
    Err(CallError::CheckpointNotFound { path: path.to_owned(), problem })
}

impl ModelText {
    /// Reads the text of the checkpoint at `path`.
    ///
    /// # Errors
    /// If it is no checkpoint, or its tokenizer or template cannot be used.
    pub fn open(path: &str) -> Result<Self, CallError> {
        if sim::is_simulated(path) {
            return sim::text();
        }
        expect_checkpoint(path)?;
        let checkpoint = Checkpoint::open(Path::new(path)).map_err(unusable)?;
        let source = checkpoint.tokenizer_source().map_err(unusable)?;
        let tokenizer = source.map(tokenizer).transpose()?;
        let templates = checkpoint.chat_templates().map_err(unusable)?;
        let special = checkpoint.special_tokens().map_err(unusable)?;
        let mut named = templates.named;
        named.extend(templates.default.map(|source| ("default".to_owned(), source)));
        let special: Vec<_> = [
            ("bos_token", special.bos),
            ("eos_token", special.eos),
            ("unk_token", special.unk),
            ("pad_token", special.pad),
        ]
        .into_iter()
        .filter_map(|(name, text)| Some((name.to_owned(), text?)))
        .collect();
        let chat_template = match named.is_empty() {
            true => None,
            false => Some(ChatTemplate::new(&named, &special).map_err(unusable)?),
        };
        Ok(Self {
            tokenizer,
            chat_template,
            sampling_defaults: sampling_defaults(checkpoint.generation_config())?,
        })
    }

    /// A text from its parts, with the engine's sampling defaults.
    pub(super) fn new(tokenizer: Tokenizer, chat_template: ChatTemplate) -> Self {
        let (tokenizer, chat_template) = (Some(tokenizer), Some(chat_template));
        Self { tokenizer, chat_template, sampling_defaults: Sampling::default() }
    }

    /// What unset sampling fields mean.
    pub fn sampling_defaults(&self) -> &Sampling {
        &self.sampling_defaults
    }

    /// Whether conversations can be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }

    /// The tokens of a conversation, and where its messages end among them.
    ///
    /// # Errors
    /// No template, one that fails, naming its line, tools for one that would drop them, or a text
    /// that cannot be tokenized.
    pub fn encode_chat(&self, chat: ChatCall, special: bool) -> Result<EncodedPrompt, CallError> {
        let MarkedPrompt { text, boundaries } = self.render(chat)?;
        let options = EncodeOptions { add_special_tokens: special, ..EncodeOptions::CHAT };
        let marked = self.tokenizer("chat")?.encode_marked(&text, options, &boundaries);
        let marked = marked.map_err(|error| CallError::field("chat", error.to_string()))?;
        let mut boundaries = marked.offsets;
        boundaries.retain(|&offset| offset > 0);
        boundaries.dedup();
        Ok(EncodedPrompt { ids: marked.ids, boundaries })
    }

    fn render(&self, chat: ChatCall) -> Result<MarkedPrompt, CallError> {
        let Some(template) = &self.chat_template else {
            let problem =
                "expected a prompt as `text` or `tokens`, for the model has no chat template";
            return Err(CallError::field("chat", problem));
        };
        let request = ChatRequest {
            messages: chat.messages,
            tools: chat.tools,
            add_generation_prompt: chat.add_generation_prompt,
            kwargs: chat.kwargs,
            ..ChatRequest::default()
        };
        if !request.tools.is_empty() && !template.reads_tools(&request) {
            let problem = "expected none, for the model's chat template does not read tools";
            return Err(CallError::field("chat.tools", problem));
        }
        template
            .render_marked(&request)
            .map_err(|error| CallError::field("chat", error.to_string()))
    }

    /// The tokens of a text that came in `field`.
    ///
    /// # Errors
    /// A text that cannot be tokenized.
    pub fn encode(&self, text: &str, special: bool, field: &str) -> Result<Vec<u32>, CallError> {
        let options = EncodeOptions { add_special_tokens: special, ..EncodeOptions::default() };
        let tokens = self.tokenizer(field)?.encode(text, options);
        tokens.map_err(|error| CallError::field(field, error.to_string()))
    }

    /// What each token stands for; bytes that are not UTF-8 as U+FFFD.
    ///
    /// # Errors
    /// An id outside of the vocabulary.
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>, CallError> {
        let tokenizer = self.tokenizer("model")?;
        let piece = |&id: &u32| {
            let piece = tokenizer.piece(id);
            piece.map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        ids.iter()
            .map(piece)
            .collect::<Result<_, _>>()
            .map_err(|error| CallError::Internal { problem: error.to_string() })
    }

    /// The text of `ids`.
    ///
    /// # Errors
    /// An id outside of the vocabulary, naming its place.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, CallError> {
        self.tokenizer("model")?.decode(ids, skip_special).map_err(|error| {
            let field = match error {
                TextError::UnknownToken { id, .. } => {
                    let place = ids.iter().position(|&other| other == id).unwrap_or_default();
                    format!("token_ids[{place}]")
                }
                _ => "token_ids".to_owned(),
            };
            CallError::field(field, error.to_string())
        })
    }

    /// What turns the tokens of a completion into text that ends before any of its stop strings.
    ///
    /// # Errors
    /// Stop strings out of bounds.
    pub fn output(&self, call: &CompletionCall) -> Result<Output, CallError> {
        let stops = StopMatcher::new(&call.stop);
        let stops = stops.map_err(|error| CallError::field("stop", error.to_string()))?;
        let tokenizer = self.tokenizer.as_ref();
        let options =
            DetokenizeOptions { skip_special: !call.show_special, ..DetokenizeOptions::default() };
        let detokenizer = tokenizer.map(|t| t.detokenizer(options));
        Ok(Output { detokenizer, stops, endless_tokens: call.min_tokens })
    }

    /// The tokenizer, which what came in `field` needs.
    fn tokenizer(&self, field: &str) -> Result<&Tokenizer, CallError> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let problem = "the checkpoint has no tokenizer; it takes prompts as `tokens` only";
            CallError::field(field, problem)
        })
    }
}

fn tokenizer(source: TokenizerSource) -> Result<Tokenizer, CallError> {
    match source {
        TokenizerSource::HuggingFace(files) => {
            let json = read(&files.tokenizer_json)?;
            let config = match files.tokenizer_config {
                Value::Null => Ok(TokenizerConfig::default()),
                config => TokenizerConfig::from_json(config.to_string().as_bytes()),
            };
            Tokenizer::from_tokenizer_json(&json, &config.map_err(unusable)?)
        }
        TokenizerSource::Gguf(metadata) => Tokenizer::from_gguf(&vocabulary(*metadata)),
    }
    .map_err(unusable)
}

/// The bytes of a regular file; a pipe would never end, and a huge file never fit.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, CallError> {
    let failed = |problem: String| unusable(format!("{}: {problem}", file.display()));
    let metadata = std::fs::metadata(file).map_err(|error| failed(error.to_string()))?;
    if !metadata.is_file() || metadata.len() > TOKENIZER_BYTES_MAX {
        let found = metadata.len();
        return Err(failed(format!(
            "expected a regular file of at most {TOKENIZER_BYTES_MAX} bytes, found {found}"
        )));
    }
    std::fs::read(file).map_err(|error| failed(error.to_string()))
}

fn unusable(error: impl ToString) -> CallError {
    CallError::field("path", error.to_string())
}

pub(super) fn vocabulary(metadata: GgufTokenizer) -> GgufVocabulary {
    GgufVocabulary {
        model: metadata.model,
        pre: metadata.pre,
        tokens: metadata.tokens,
        scores: metadata.scores,
        token_types: metadata.token_types,
        merges: metadata.merges,
        bos_token_id: metadata.bos_token_id,
        eos_token_id: metadata.eos_token_id,
        eot_token_id: metadata.eot_token_id,
        unknown_token_id: metadata.unknown_token_id,
        padding_token_id: metadata.padding_token_id,
        add_bos_token: metadata.add_bos,
        add_eos_token: metadata.add_eos,
        add_space_prefix: metadata.add_space_prefix,
    }
}

/// The checkpoint's own sampling where it says something, the engine's elsewhere.
fn sampling_defaults(config: &GenerationConfig) -> Result<Sampling, CallError> {
    let engine = Sampling::default();
    let number = |key: &str, value: Option<f64>, default: f32, holds: fn(f32) -> bool| match value {
        None => Ok(default),
        Some(value) if holds(value as f32) => Ok(value as f32),
        Some(value) => Err(unusable(format!("generation config: {key} is {value}, out of range"))),
    };
    // A checkpoint that says not to sample means the likeliest token, whatever its temperature.
    let greedy = config.do_sample == Some(false);
    let temperature = config.temperature.filter(|_| !greedy);
    let default = if greedy { 0.0 } else { engine.temperature };
    Ok(Sampling {
        temperature: number("temperature", temperature, default, |x| x >= 0.0 && x.is_finite())?,
        top_p: number("top_p", config.top_p, engine.top_p, |x| x > 0.0 && x <= 1.0)?,
        top_k: config.top_k.unwrap_or(engine.top_k),
        min_p: number("min_p", config.min_p, engine.min_p, |x| (0.0..=1.0).contains(&x))?,
        repeat_penalty: number(
            "repetition_penalty",
            config.repetition_penalty,
            engine.repeat_penalty,
            |x| x > 0.0 && x.is_finite(),
        )?,
        ..engine
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    #[test]
    fn the_messages_of_a_conversation_end_at_boundaries_of_its_tokens() {
        let text = sim::text().expect("builds");
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let chat = ChatCall {
            messages: vec![message("system", "Be brief."), message("user", "Why?")],
            tools: Vec::new(),
            kwargs: Map::new(),
            add_generation_prompt: true,
        };
        // A token of the simulated model is a byte.
        let parts = ["system: Be brief.\n", "user: ", "Why?\n", "assistant:"];
        let ends = parts.iter().scan(0, |end, part| {
            *end += part.len();
            Some(*end)
        });
        let mut expected: Vec<usize> = ends.collect();
        let all = expected.pop().expect("parts");
        let prompt = text.encode_chat(chat, false).expect("encodes");
        assert_eq!(prompt.boundaries, expected);
        assert_eq!(prompt.ids.len(), all);
        assert_eq!(text.encode(&parts.concat(), false, "text").expect("encodes"), prompt.ids);
    }

    #[test]
    fn the_checkpoints_sampling_wins_over_the_engines() {
        let config = GenerationConfig {
            temperature: Some(0.6),
            top_k: Some(20),
            ..GenerationConfig::default()
        };
        let sampling = sampling_defaults(&config).expect("in range");
        assert_eq!((sampling.temperature, sampling.top_k), (0.6, 20));
        assert_eq!(sampling.top_p, Sampling::default().top_p);
    }

    #[test]
    fn a_checkpoint_that_does_not_sample_is_greedy() {
        let config = GenerationConfig {
            do_sample: Some(false),
            temperature: Some(0.6),
            ..GenerationConfig::default()
        };
        assert_eq!(sampling_defaults(&config).expect("in range").temperature, 0.0);
    }

    #[test]
    fn sampling_out_of_range_is_refused_by_name() {
        let config = GenerationConfig { top_p: Some(1.5), ..GenerationConfig::default() };
        let error = sampling_defaults(&config).expect_err("out of range");
        assert!(error.to_string().contains("top_p is 1.5"), "{error}");
    }
}
