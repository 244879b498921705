//! Chat templates: messages to prompt text, as `transformers.apply_chat_template` does it with
//! Jinja2. Templates come from checkpoints and are not trusted: no loader, bounded work.
//! Turning the text into ids is the tokenizer's part ([`EncodeOptions::CHAT`]).
//!
//! [`EncodeOptions::CHAT`]: crate::EncodeOptions::CHAT

mod boundaries;
mod functions;
mod json;
mod strftime;
mod value;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment};
use regex::Regex;
use serde_json::{Map, Value};

pub use boundaries::{BOUNDARIES_MAX, MarkedPrompt, RECENT_MESSAGES_MAX};

/// Instructions a rendering may execute. Real templates need some hundreds per message.
pub const MAX_INSTRUCTIONS: u64 = 10_000_000;

/// Depth of nested blocks, macros and calls while rendering.
pub const MAX_RECURSION: usize = 100;

/// Longest template source in bytes.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// Longest prompt that a template may write, in bytes.
pub const MAX_RENDERED_BYTES: usize = 64 << 20;

/// The name of the template that is used unless another is asked for.
const DEFAULT: &str = "default";

/// The name of the template that is used when there are tools, if the checkpoint has it.
const TOOL_USE: &str = "tool_use";

/// Names that `kwargs` may not set, because the request has fields for them.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// Why a template cannot be used or did not render.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("chat template {template:?}{}: {message}", .line.map(|n| format!(", line {n}")).unwrap_or_default())]
pub struct TemplateError {
    /// Which of the checkpoint's templates.
    pub template: String,
    /// The line of the template, counted from 1, where there is one to blame.
    pub line: Option<usize>,
    /// What is wrong: for `raise_exception`, the template's own words.
    pub message: String,
}

/// The chat templates of one checkpoint, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(String, String)>,
}

/// One conversation to render.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    /// Messages as JSON objects (`role`, `content`, `tool_calls`, ...), passed on as they are.
    pub messages: Vec<Value>,
    /// Tool declarations as JSON objects; none at all is `none` in the template.
    pub tools: Vec<Value>,
    /// Documents as JSON objects; none at all is `none` in the template.
    pub documents: Vec<Value>,
    /// End with the header of the assistant's next message.
    pub add_generation_prompt: bool,
    /// Which of several templates; without a name, `tool_use` if there are tools and such a
    /// template, else `default`.
    pub template: Option<String>,
    /// Further variables of the template (`enable_thinking`, ...). They may replace special
    /// tokens, but not the variables above.
    pub kwargs: Map<String, Value>,
    /// What `strftime_now` shows (UTC); the system's clock if not given.
    pub now: Option<SystemTime>,
}

impl ChatTemplate {
    /// Compiles a checkpoint's templates, given as (name, source). A single one should be named
    /// `default`. `special_tokens` are variables such as (`bos_token`, `<s>`).
    ///
    /// # Errors
    /// [`TemplateError`] with the line for a source that does not parse or is too long.
    pub fn new(
        templates: &[(String, String)],
        special_tokens: &[(String, String)],
    ) -> Result<Self, TemplateError> {
        let mut environment = environment();
        for (name, source) in templates {
            if source.len() > MAX_TEMPLATE_BYTES {
                return Err(TemplateError {
                    template: name.clone(),
                    line: None,
                    message: format!(
                        "the source has {} bytes, at most {MAX_TEMPLATE_BYTES} are allowed",
                        source.len()
                    ),
                });
            }
            let source = without_generation_marks(source);
            guarded(|| environment.add_template_owned(name.clone(), source))
                .map_err(|error| template_error(name, &error))?;
        }
        Ok(Self { environment, special_tokens: special_tokens.to_vec() })
    }

    /// The names of the templates, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.environment.templates().map(|(name, _)| name).collect();
        names.sort_unstable();
        names
    }

    /// Renders the conversation to prompt text, special tokens included: encode it without
    /// adding them again.
    ///
    /// # Errors
    /// [`TemplateError`] with the template's line: `raise_exception`, an undefined attribute, a
    /// bound that is exceeded, or no such template.
    pub fn render(&self, request: &ChatRequest) -> Result<String, TemplateError> {
        Ok(self.rendering(request)?.whole(request.add_generation_prompt)?.0)
    }

    /// Renders as [`render`](Self::render) does, and finds where messages end in the prompt. That
    /// parts of the conversation cannot be rendered alone is no error: it costs boundaries.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_marked(&self, request: &ChatRequest) -> Result<MarkedPrompt, TemplateError> {
        let rendering = self.rendering(request)?;
        let (text, spent) = rendering.whole(request.add_generation_prompt)?;
        let boundaries = boundaries::find(&rendering, &request.messages, &text, spent);
        Ok(MarkedPrompt { text, boundaries })
    }

    fn rendering<'a>(&'a self, request: &'a ChatRequest) -> Result<Rendering<'a>, TemplateError> {
        let name = self.choose(request);
        let fail =
            |message: String| TemplateError { template: name.to_owned(), line: None, message };
        let template = self.environment.get_template(name).map_err(|_| {
            fail(format!("no such template, expected one of: {}", self.names().join(", ")))
        })?;
        if let Some(key) = request.kwargs.keys().find(|key| RESERVED.contains(&key.as_str())) {
            return Err(fail(format!(
                "{key:?} is a field of the request and cannot be a variable"
            )));
        }
        let messages = request.messages.iter().map(value::from_json).collect();
        Ok(Rendering { name, template, variables: self.variables(request), messages })
    }

    /// Whether the template that would render `request` reads `tools` at all: one that does not
    /// drops the declarations without a word.
    #[must_use]
    pub fn reads_tools(&self, request: &ChatRequest) -> bool {
        self.environment
            .get_template(self.choose(request))
            .is_ok_and(|template| template.undeclared_variables(false).contains("tools"))
    }

    fn choose<'a>(&self, request: &'a ChatRequest) -> &'a str {
        match &request.template {
            Some(name) => name,
            None if !request.tools.is_empty()
                && self.environment.get_template(TOOL_USE).is_ok() =>
            {
                TOOL_USE
            }
            None => DEFAULT,
        }
    }

    /// All but `messages` and `add_generation_prompt`.
    fn variables(&self, request: &ChatRequest) -> Vec<(String, minijinja::Value)> {
        let list = |values: &[Value]| match values {
            [] => minijinja::Value::from(()),
            values => values.iter().map(value::from_json).collect(),
        };
        let tokens = self.special_tokens.iter();
        let mut variables: Vec<(String, minijinja::Value)> =
            tokens.map(|(name, text)| (name.clone(), text.as_str().into())).collect();
        let kwargs = request.kwargs.iter();
        variables.extend(kwargs.map(|(name, json)| (name.clone(), value::from_json(json))));
        variables.push(("tools".to_owned(), list(&request.tools)));
        variables.push(("documents".to_owned(), list(&request.documents)));
        let now = request.now.unwrap_or_else(SystemTime::now);
        variables.push(("strftime_now".to_owned(), functions::strftime_now(now)));
        variables
    }
}

/// A template with what it is to be given, ready to render all messages or the first of them.
struct Rendering<'a> {
    name: &'a str,
    template: minijinja::Template<'a, 'a>,
    variables: Vec<(String, minijinja::Value)>,
    messages: Vec<minijinja::Value>,
}

impl Rendering<'_> {
    /// The prompt of all messages, and how many instructions it took.
    fn whole(&self, add_generation_prompt: bool) -> Result<(String, u64), TemplateError> {
        let fail = |message| TemplateError { template: self.name.to_owned(), line: None, message };
        let mut output = BoundedOutput { bytes: Vec::new(), exceeded: false };
        let rendered = self.write(self.messages.clone(), add_generation_prompt, &mut output);
        if output.exceeded {
            return Err(fail(format!("the prompt exceeds {MAX_RENDERED_BYTES} bytes")));
        }
        let spent = rendered.map_err(|error| template_error(self.name, &error))?;
        let text = String::from_utf8(output.bytes);
        Ok((text.map_err(|_| fail("the prompt is not UTF-8".to_owned()))?, spent))
    }

    /// Writes the prompt of `messages` to `output`, and says how many instructions that took.
    fn write(
        &self,
        messages: Vec<minijinja::Value>,
        add_generation_prompt: bool,
        output: impl io::Write,
    ) -> Result<u64, minijinja::Error> {
        let mut variables = self.variables.clone();
        variables.push(("messages".to_owned(), messages.into()));
        variables.push(("add_generation_prompt".to_owned(), add_generation_prompt.into()));
        let variables = minijinja::Value::from_pairs(variables);
        guarded(|| {
            let captured = self.template.render_captured_to(variables, output)?;
            Ok(captured.state().fuel_levels().map_or(0, |(spent, _)| spent))
        })
    }
}

/// Does `work` of the library, which panics at some templates: at a slice backwards of an empty text,
/// for one (minijinja 3.0.5). Nothing that `work` has written is used then.
fn guarded<T>(work: impl FnOnce() -> Result<T, minijinja::Error>) -> Result<T, minijinja::Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let kind = minijinja::ErrorKind::InvalidOperation;
        Err(minijinja::Error::new(kind, "the template engine fails at this template"))
    })
}

/// Jinja2 as transformers sets it up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters do not collide"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(MAX_INSTRUCTIONS));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_debug(false);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", functions::raise_exception);
    environment.add_filter("tojson", functions::tojson);
    environment
}

/// Takes out `{% generation %}` and `{% endgeneration %}`, which mark the assistant's text for
/// training: a block that is always entered keeps lines and white-space control as they are.
fn without_generation_marks(source: &str) -> String {
    static MARK: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})").expect("the pattern is valid")
    });
    let block = |mark: &regex::Captures<'_>| {
        let inside = if mark.get(2).is_some() { "endif" } else { "if true" };
        format!("{}{inside}{}", &mark[1], &mark[3])
    };
    MARK.replace_all(source, block).into_owned()
}

fn template_error(name: &str, error: &minijinja::Error) -> TemplateError {
    let message = match (error.kind(), error.detail()) {
        (minijinja::ErrorKind::OutOfFuel, _) => {
            format!("rendering takes more than {MAX_INSTRUCTIONS} instructions")
        }
        (minijinja::ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    TemplateError { template: error.name().unwrap_or(name).to_owned(), line: error.line(), message }
}

/// Collects the prompt up to its bound.
struct BoundedOutput {
    bytes: Vec<u8>,
    exceeded: bool,
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_RENDERED_BYTES {
            self.exceeded = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
