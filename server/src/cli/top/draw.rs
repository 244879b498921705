//! The screen, drawn from a [`View`]: a head, memory, models or a tree, the cache, the keys.

use std::time::Duration;

use ratatui::backend::TestBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table};
use ratatui::{Frame, Terminal};
use sconce_proto::v1::{GetStatusResponse, MemoryLedger, ModelState, ModelStatus, Totals};

use super::rates::span;
use super::view::{HISTORY_MAX, Tree, View};
use crate::cli::cache::report::{explained, tier_name};
use crate::cli::output;

/// Columns of a frame that is printed as text.
const PLAIN_COLUMNS: u16 = 100;
/// Columns of a bar of memory.
const BAR_COLUMNS: usize = 10;
/// Lines of the head, and of the history with its border.
const HEAD_LINES: u16 = 4;
/// See [`HEAD_LINES`].
const HISTORY_LINES: u16 = 4;
/// What a bar is made of: weights, workspace, state of running sequences, remembered state, free.
const BAR: [char; 5] = ['█', '▓', '▒', '░', '·'];

/// Draws `view` on the whole of `frame`.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let Some((status, _)) = &view.last else { return };
    let reasons = status.totals.as_ref().map_or(0, |totals| totals.cache_reasons.len());
    let [head, spark, memory, middle, cache, keys] = Layout::vertical([
        Constraint::Length(HEAD_LINES),
        Constraint::Length(HISTORY_LINES),
        Constraint::Length(rows(status.memory.len())),
        Constraint::Min(4),
        Constraint::Length(rows(reasons)),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, head, view, status);
    draw_history(frame, spark, view);
    draw_memory(frame, memory, &status.memory);
    match &view.tree {
        Some(tree) => draw_tree(frame, middle, tree),
        None => draw_models(frame, middle, &status.models, view.selected),
    }
    draw_cache(frame, cache, status.totals.as_ref());
    let help = "q quit   up/down choose or scroll   t tree of the model's cache";
    frame.render_widget(Paragraph::new(help).style(Style::new().add_modifier(Modifier::DIM)), keys);
}

/// The view as text, as high as it has something to say.
pub(super) fn plain(view: &View) -> String {
    let (models, reasons, tiers) = view.last.as_ref().map_or((0, 0, 0), |(status, _)| {
        let reasons = status.totals.as_ref().map_or(0, |totals| totals.cache_reasons.len());
        (status.models.len(), reasons, status.memory.len())
    });
    let lines = HEAD_LINES + HISTORY_LINES + rows(tiers) + rows(models) + rows(reasons) + 1;
    // Neither can fail on memory, and their types say so.
    let Ok(mut terminal) = Terminal::new(TestBackend::new(PLAIN_COLUMNS, lines));
    let Ok(_) = terminal.draw(|frame| draw(frame, view));
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    // The last line tells of keys, which a text has none of.
    for row in 0..lines - 1 {
        let cells = (0..PLAIN_COLUMNS).map(|column| buffer[(column, row)].symbol());
        text.push_str(cells.collect::<String>().trim_end());
        text.push('\n');
    }
    text
}

/// Lines of a block with a border, a header and so many entries.
fn rows(entries: usize) -> u16 {
    u16::try_from(entries).unwrap_or(u16::MAX).saturating_add(3)
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, view: &View, status: &GetStatusResponse) {
    let up = humantime::format_duration(Duration::from_secs(span(status.uptime).as_secs()));
    let state = match (&view.problem, status.draining) {
        (Some(problem), _) => format!("lost: {problem}"),
        (None, true) => "draining".to_owned(),
        (None, false) => format!("up {up}"),
    };
    let counts = status.sequences.unwrap_or_default();
    let totals = status.totals.clone().unwrap_or_default();
    let rates = view.rates();
    let lines = vec![
        Line::styled(
            format!("sconce {} at {}   {state}", status.version, view.address),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Line::raw(format!(
            "requests  {} running, {} waiting; {} done, {} failed, {} cancelled, {} preemptions",
            counts.running,
            counts.waiting,
            totals.requests_finished,
            totals.requests_failed,
            totals.requests_cancelled,
            totals.preemptions,
        )),
        Line::raw(format!(
            "tokens/s  {:.1} in (and {:.1} resumed), {:.1} out",
            rates.prompt, rates.resumed, rates.completion,
        )),
        Line::raw(format!(
            "mean      first token {}, between tokens {}, step {}",
            time(rates.first_token),
            time(rates.gap),
            time(rates.step),
        )),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn time(time: Option<Duration>) -> String {
    match time {
        None => "-".to_owned(),
        Some(time) if time < Duration::from_secs(1) => {
            format!("{:.1} ms", time.as_secs_f64() * 1e3)
        }
        Some(time) => format!("{:.2} s", time.as_secs_f64()),
    }
}

fn draw_history(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let columns = usize::from(area.width.saturating_sub(2)).min(HISTORY_MAX);
    let recent = view.history.iter().skip(view.history.len().saturating_sub(columns));
    let data: Vec<u64> = recent.map(|rates| rates.completion.round() as u64).collect();
    let most = data.iter().max().copied().unwrap_or(0);
    let block = Block::bordered().title(format!(" tokens/s out, at most {most} "));
    frame.render_widget(Sparkline::default().block(block).data(&data), area);
}

fn draw_memory(frame: &mut Frame<'_>, area: Rect, memory: &[MemoryLedger]) {
    let rows = memory.iter().map(|tier| {
        let parts = parts(tier);
        let used: u64 = parts.iter().sum();
        let budget = tier.budget_bytes.map_or_else(|| "none".to_owned(), output::bytes);
        let mut cells = vec![tier_name(tier.tier()).to_owned(), bar(&parts, tier.budget_bytes)];
        cells.extend([output::bytes(used), budget]);
        cells.extend(parts.map(output::bytes));
        Row::new(cells)
    });
    let mut widths = vec![Constraint::Length(6), Constraint::Length(BAR_COLUMNS as u16)];
    widths.extend([Constraint::Length(9); 6]);
    let [weights, workspace, live, cached, _] = BAR;
    let header = ["tier", "", "used", "budget"].map(str::to_owned).into_iter().chain([
        format!("{weights} weights"),
        format!("{workspace} steps"),
        format!("{live} running"),
        format!("{cached} cached"),
    ]);
    let table = Table::new(rows, widths)
        .header(Row::new(header.collect::<Vec<_>>()))
        .block(Block::bordered().title(" memory "));
    frame.render_widget(table, area);
}

/// Bytes of a tier in the order of [`BAR`].
fn parts(tier: &MemoryLedger) -> [u64; 4] {
    [tier.weights_bytes, tier.workspace_bytes, tier.live_state_bytes, tier.cached_state_bytes]
}

/// A bar of the parts within the budget, or of their sum where there is none. What is there is seen,
/// however small.
fn bar(parts: &[u64; 4], budget: Option<u64>) -> String {
    let used = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(*part));
    let whole = budget.unwrap_or(used).max(used).max(1);
    let mut bar = String::new();
    let mut left = BAR_COLUMNS;
    for (part, symbol) in parts.iter().zip(BAR) {
        let share = (*part as f64 / whole as f64 * BAR_COLUMNS as f64).round() as usize;
        let columns = share.max(usize::from(*part > 0)).min(left);
        bar.extend(std::iter::repeat_n(symbol, columns));
        left -= columns;
    }
    bar.extend(std::iter::repeat_n(BAR[4], left));
    bar
}

fn draw_models(frame: &mut Frame<'_>, area: Rect, models: &[ModelStatus], selected: usize) {
    let rows = models.iter().enumerate().map(|(index, model)| {
        let counts = model.sequences.unwrap_or_default();
        let idle = model.idle.map(|idle| {
            humantime::format_duration(Duration::from_secs(span(Some(idle)).as_secs())).to_string()
        });
        let row = Row::new([
            model.model.clone(),
            state(model),
            counts.running.to_string(),
            counts.waiting.to_string(),
            output::bytes(model.state_bytes_used),
            idle.unwrap_or_else(|| "busy".to_owned()),
        ]);
        let chosen = if index == selected { Modifier::REVERSED } else { Modifier::empty() };
        row.style(Style::new().add_modifier(chosen))
    });
    let widths = [
        Constraint::Min(12),
        Constraint::Length(14),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(10),
        Constraint::Length(12),
    ];
    let table = Table::new(rows, widths)
        .header(Row::new(["model", "state", "running", "waiting", "state used", "idle"]))
        .block(Block::bordered().title(" models "));
    frame.render_widget(table, area);
}

fn state(model: &ModelStatus) -> String {
    match model.state() {
        ModelState::Unspecified => "unknown".to_owned(),
        ModelState::Ready => "ready".to_owned(),
        ModelState::Unloading => "unloading".to_owned(),
        ModelState::Failed => "failed".to_owned(),
        ModelState::Loading => match &model.progress {
            Some(progress) if progress.bytes_total > 0 => {
                let percent = progress.bytes_done.saturating_mul(100) / progress.bytes_total;
                format!("loading {percent} %")
            }
            _ => "loading".to_owned(),
        },
    }
}

fn draw_tree(frame: &mut Frame<'_>, area: Rect, tree: &Tree) {
    let lines: Vec<Line<'_>> =
        tree.lines.iter().skip(tree.offset).map(|line| Line::raw(line.as_str())).collect();
    let block = Block::bordered().title(format!(" what {} remembers ", tree.model));
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_cache(frame: &mut Frame<'_>, area: Rect, totals: Option<&Totals>) {
    let reasons = totals.map_or(&[][..], |totals| totals.cache_reasons.as_slice());
    let rows = reasons
        .iter()
        .map(|count| Row::new([count.requests.to_string(), explained(count.reason()).to_owned()]));
    let table = Table::new(rows, [Constraint::Length(10), Constraint::Min(20)])
        .header(Row::new(["requests", "why no more of the prompt was resumed"]))
        .block(Block::bordered().title(" cache "));
    frame.render_widget(table, area);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use sconce_proto::v1::{
        CacheReason, CacheReasonCount, LoadProgress, SequenceCounts, Tier, Totals,
    };

    use super::*;

    fn wire(milliseconds: i64) -> Option<prost_types::Duration> {
        let nanos = (milliseconds % 1000) as i32 * 1_000_000;
        Some(prost_types::Duration { seconds: milliseconds / 1000, nanos })
    }

    /// A server with a model that works and one that is being loaded, after `looks` seconds.
    fn status(looks: u64) -> GetStatusResponse {
        let totals = Totals {
            requests_finished: 12,
            requests_failed: 1,
            steps: 20 * looks,
            step_time: wire(800 * looks as i64),
            prompt_tokens: 150 * looks,
            resumed_tokens: 50 * looks,
            completion_tokens: 30 * looks + looks * looks,
            first_tokens: 2 * looks,
            first_token_time: wire(240 * looks as i64),
            token_gap_time: wire(1200 * looks as i64),
            cache_reasons: vec![
                CacheReasonCount { reason: CacheReason::Full.into(), requests: 9 },
                CacheReasonCount { reason: CacheReason::Evicted.into(), requests: 3 },
            ],
            ..Totals::default()
        };
        let running = SequenceCounts { running: 2, waiting: 1 };
        let small = ModelStatus {
            model: "small".into(),
            state: ModelState::Ready.into(),
            sequences: Some(running),
            state_bytes_used: 12_000_000,
            ..ModelStatus::default()
        };
        let large = ModelStatus {
            model: "large".into(),
            state: ModelState::Loading.into(),
            progress: Some(LoadProgress {
                bytes_done: 43,
                bytes_total: 100,
                ..LoadProgress::default()
            }),
            idle: wire(65_000),
            ..ModelStatus::default()
        };
        let device = MemoryLedger {
            tier: Tier::Device.into(),
            budget_bytes: Some(1_000_000_000),
            weights_bytes: 250_000_000,
            workspace_bytes: 1_000_000,
            live_state_bytes: 250_000_000,
            cached_state_bytes: 100_000_000,
        };
        let host = MemoryLedger { tier: Tier::Host.into(), ..MemoryLedger::default() };
        GetStatusResponse {
            version: "1.2.3".into(),
            uptime: wire(3_723_000),
            memory: vec![device, host],
            sequences: Some(running),
            models: vec![large, small],
            totals: Some(totals),
            ..GetStatusResponse::default()
        }
    }

    fn view() -> View {
        let mut view = View::new("127.0.0.1:50051");
        let began = Instant::now();
        for look in 0..8 {
            view.see(status(look), began + Duration::from_secs(look));
        }
        view
    }

    /// The screen of a terminal of 80 columns.
    fn screen(view: &View) -> String {
        let mut terminal = Terminal::new(TestBackend::new(80, 26)).expect("cannot fail");
        terminal.draw(|frame| draw(frame, view)).expect("cannot fail");
        terminal.backend().to_string()
    }

    #[test]
    fn a_frame_as_text() {
        let expected = "\
sconce 1.2.3 at 127.0.0.1:50051   up 1h 2m 3s
requests  2 running, 1 waiting; 12 done, 1 failed, 0 cancelled, 0 preemptions
tokens/s  150.0 in (and 50.0 resumed), 43.0 out
mean      first token 120.0 ms, between tokens 29.3 ms, step 40.0 ms
┌ tokens/s out, at most 43 ────────────────────────────────────────────────────────────────────────┐
│▃▄▅▅▆▇█                                                                                           │
│███████                                                                                           │
└──────────────────────────────────────────────────────────────────────────────────────────────────┘
┌ memory ──────────────────────────────────────────────────────────────────────────────────────────┐
│tier              used      budget    █ weights ▓ steps   ▒ running ░ cached                      │
│device ███▓▒▒▒░·· 601.00 MB 1.00 GB   250.00 MB 1.00 MB   250.00 MB 100.00 MB                     │
│host   ·········· 0 B       none      0 B       0 B       0 B       0 B                           │
└──────────────────────────────────────────────────────────────────────────────────────────────────┘
┌ models ──────────────────────────────────────────────────────────────────────────────────────────┐
│model                                       state          running waiting state used idle        │
│large                                       loading 43 %   0       0       0 B        1m 5s       │
│small                                       ready          2       1       12.00 MB   busy        │
└──────────────────────────────────────────────────────────────────────────────────────────────────┘
┌ cache ───────────────────────────────────────────────────────────────────────────────────────────┐
│requests   why no more of the prompt was resumed                                                  │
│9          all of it is remembered                                                                │
│3          more was remembered and has been evicted                                               │
└──────────────────────────────────────────────────────────────────────────────────────────────────┘
";
        assert_eq!(plain(&view()), expected);
    }

    #[test]
    fn a_tree_takes_the_place_of_the_models() {
        let mut view = view();
        view.toggle_tree();
        view.see_tree("upper\n  lower\n".into());
        view.go(1);
        let screen = screen(&view);
        assert!(screen.contains(" what large remembers "), "{screen}");
        assert!(screen.contains("  lower") && !screen.contains("upper"), "{screen}");
        assert!(!screen.contains(" models "), "{screen}");
    }

    #[test]
    fn a_server_that_is_lost_is_still_drawn() {
        let mut view = view();
        view.lose("gone".into());
        let screen = screen(&view);
        assert!(screen.contains("lost: gone") && screen.contains("small"), "{screen}");
    }

    #[test]
    fn a_terminal_of_any_size_is_drawn_on() {
        for (columns, lines) in [(1, 1), (10, 3), (40, 12), (300, 100)] {
            let mut terminal = Terminal::new(TestBackend::new(columns, lines)).expect("fits");
            terminal.draw(|frame| draw(frame, &view())).expect("cannot fail");
        }
    }

    #[test]
    fn a_bar_shows_what_is_there_however_small() {
        assert_eq!(bar(&[1, 0, 0, 0], Some(1_000_000)), "█·········");
        assert_eq!(bar(&[50, 0, 0, 50], None), "█████░░░░░");
        assert_eq!(bar(&[0; 4], None), "··········");
        assert_eq!(bar(&[100, 100, 100, 100], Some(10)).chars().count(), BAR_COLUMNS);
    }
}
