//! Where the messages of a rendered conversation end, found without knowing the template: what it
//! writes for the first messages alone is laid beside what it wrote for all of them. Which of these
//! places are worth remembering state at is not decided here.

use std::io;

use serde_json::Value;

use super::{MAX_INSTRUCTIONS, Rendering};

/// The last messages whose ends are looked for.
pub const RECENT_MESSAGES_MAX: usize = 8;

/// Most places that [`render_marked`](crate::ChatTemplate::render_marked) finds: where the first
/// words of the conversation begin, the end of the last user message, and of the recent messages.
pub const BOUNDARIES_MAX: usize = RECENT_MESSAGES_MAX + 2;

/// What stands for the first words of a conversation to see where they begin: a character that no
/// prompt begins with, and no template strips.
const STAND_IN: &str = "\u{1}";

/// A prompt with the places where its messages end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkedPrompt {
    /// What [`render`](crate::ChatTemplate::render) gives for the same conversation.
    pub text: String,
    /// Bytes of `text`, ascending, without 0: where the first words after the system prompt and the
    /// tools begin, the end of the last user message, and the ends of the last messages, the last
    /// of which is where the generation prompt begins. A message whose text depends on
    /// those after it, as templates have it that drop earlier reasoning, has none.
    pub boundaries: Vec<usize>,
}

/// The places in `text`, which `rendering` wrote with `spent` instructions for all of its messages.
/// All that is done for them takes about as much again at most as one rendering may.
pub(super) fn find(
    rendering: &Rendering<'_>,
    messages: &[Value],
    text: &str,
    spent: u64,
) -> Vec<usize> {
    let mut search = Search { rendering, text, whole: spent, left: MAX_INSTRUCTIONS };
    let is_user = |message: &Value| role(message) == Some("user");
    let last_user = messages.iter().rposition(is_user).map(|index| index + 1);
    let recent = (1..=messages.len()).rev().take(RECENT_MESSAGES_MAX);
    // What matters most comes first, for a large conversation may use up the allowance.
    let mut found: Vec<usize> =
        last_user.and_then(|count| search.end_of(count)).into_iter().collect();
    found.extend(search.first_words(messages));
    let recent = recent.filter(|&count| Some(count) != last_user);
    found.extend(recent.filter_map(|count| search.end_of(count)));
    found.retain(|&at| at > 0);
    found.sort_unstable();
    found.dedup();
    found
}

fn role(message: &Value) -> Option<&str> {
    message.get("role")?.as_str()
}

struct Search<'a> {
    rendering: &'a Rendering<'a>,
    text: &'a str,
    /// Instructions that rendering all messages took.
    whole: u64,
    /// Instructions that are left.
    left: u64,
}

impl Search<'_> {
    /// Where the first `count` messages end, if the text begins with what they give alone.
    fn end_of(&mut self, count: usize) -> Option<usize> {
        let messages = self.rendering.messages[..count].to_vec();
        let (common, is_prefix) = self.common_with(messages)?;
        is_prefix.then_some(common)
    }

    /// Where the words of the first message begin that is not the system's: all before it is the
    /// same for every conversation with this system prompt and these tools, also where the template
    /// writes them into the first message or refuses them without one.
    fn first_words(&mut self, messages: &[Value]) -> Option<usize> {
        let is_system = |message: &Value| matches!(role(message), Some("system" | "developer"));
        let first = messages.iter().position(|message| !is_system(message))?;
        let mut stand_in = messages[first].clone();
        stand_in.as_object_mut()?.insert("content".to_owned(), STAND_IN.into());
        let mut partial = self.rendering.messages[..first].to_vec();
        partial.push(super::value::from_json(&stand_in));
        let (common, _) = self.common_with(partial)?;
        Some(common)
    }

    /// How much of the text's beginning the template also writes for `messages`, without a
    /// generation prompt, and whether it writes no more than that. `None` without allowance.
    fn common_with(&mut self, messages: Vec<minijinja::Value>) -> Option<(usize, bool)> {
        if self.left < self.whole {
            return None;
        }
        let mut output = Comparison { expected: self.text.as_bytes(), common: 0, differs: false };
        let rendered = self.rendering.write(messages, false, &mut output);
        // One that failed took at most what rendering all takes, or it is the template's fault.
        self.left = self.left.saturating_sub(*rendered.as_ref().unwrap_or(&self.whole));
        let failed = rendered.is_err() && !output.differs;
        let common = self.text.floor_char_boundary(output.common);
        (!failed).then_some((common, !output.differs))
    }
}

/// Compares what is written with what is expected, and ends the writing where it differs.
struct Comparison<'a> {
    expected: &'a [u8],
    common: usize,
    differs: bool,
}

impl io::Write for Comparison<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let expected = &self.expected[self.common..];
        if expected.starts_with(bytes) {
            self.common += bytes.len();
            return Ok(bytes.len());
        }
        self.common += expected.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        self.differs = true;
        Err(io::ErrorKind::InvalidData.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{ChatRequest, ChatTemplate};

    use super::*;

    const CHATML: &str = "\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}\
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

    fn conversation(roles: &str) -> Vec<Value> {
        let message = |(index, role)| {
            let role = match role {
                's' => "system",
                'u' => "user",
                'a' => "assistant",
                _ => "tool",
            };
            json!({"role": role, "content": format!("words of {index}")})
        };
        roles.chars().enumerate().map(message).collect()
    }

    /// What comes before each boundary.
    fn boundaries(source: &str, messages: Vec<Value>, tools: Vec<Value>) -> Vec<String> {
        let template = ChatTemplate::new(&[("default".into(), source.into())], &[]).unwrap();
        let request =
            ChatRequest { messages, tools, add_generation_prompt: true, ..ChatRequest::default() };
        let marked = template.render_marked(&request).unwrap();
        assert_eq!(marked.text, template.render(&request).unwrap());
        marked.boundaries.iter().map(|&at| marked.text[..at].to_owned()).collect()
    }

    #[test]
    fn every_message_of_a_short_conversation_ends_at_a_boundary() {
        let found = boundaries(CHATML, conversation("suau"), Vec::new());
        let ends: Vec<&str> =
            found.iter().map(|text| text.rsplit("<|im_").next().unwrap()).collect();
        assert_eq!(ends, ["end|>\n", "start|>user\n", "end|>\n", "end|>\n", "end|>\n"]);
        assert!(found[4].ends_with("words of 3<|im_end|>\n"));
    }

    #[test]
    fn of_a_long_conversation_the_last_user_and_the_recent_messages_remain() {
        let found = boundaries(CHATML, conversation(&format!("su{}", "at".repeat(20))), Vec::new());
        assert_eq!(found.len(), BOUNDARIES_MAX);
        assert!(found[0].ends_with("<|im_start|>user\n"));
        assert!(found[1].ends_with("words of 1<|im_end|>\n"), "the user's last words");
        assert!(found[2].ends_with("words of 34<|im_end|>\n"));
        assert!(found[9].ends_with("words of 41<|im_end|>\n"));
    }

    #[test]
    fn a_template_that_refuses_parts_gives_what_it_can() {
        let source = "{%- if messages | length < 3 %}{{ raise_exception('too short') }}{% endif %}"
            .to_owned()
            + CHATML;
        let found = boundaries(&source, conversation("suau"), Vec::new());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].ends_with("words of 2<|im_end|>\n"));
    }

    #[test]
    fn tools_inside_the_first_message_are_before_the_first_words() {
        let source = "{%- for message in messages %}<{{ message.role }}>\
            {%- if loop.first and tools %}[{{ tools | tojson }}]{% endif %}{{ message.content }}{% endfor %}";
        let found = boundaries(source, conversation("u"), vec![json!({"name": "look"})]);
        assert_eq!(found[0], "<user>[[{\"name\": \"look\"}]]");
    }

    #[test]
    fn a_template_that_ends_with_the_last_words_gives_them_alone() {
        // Whether a message is the last changes its text, so that only whole prompts agree.
        let source =
            "{% for m in messages %}{{ m.content }}{{ '.' if loop.last else ',' }}{% endfor %}";
        let found = boundaries(source, conversation("uau"), Vec::new());
        assert_eq!(found, ["words of 0,words of 1,words of 2."]);
    }

    #[test]
    fn a_costly_conversation_does_without_boundaries() {
        let costly = "{% if i == 1 %}{% endif %}".repeat(8);
        let source = format!("{{% for i in range(99999) %}}{costly}{{% endfor %}}{CHATML}");
        let found = boundaries(&source, conversation("uauauauauau"), Vec::new());
        assert!((1..4).contains(&found.len()), "{found:?}");
        assert!(found.last().is_some_and(|text| text.ends_with("words of 10<|im_end|>\n")));
    }
}
