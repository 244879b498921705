//! What tells people and shells of the commands: manual pages and completion scripts.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{run, stderr, stdout};

/// The commands that `sconce help` lists.
fn commands() -> Vec<String> {
    let help = stdout(&run(&["help"]));
    let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let names = listed.take_while(|line| !line.is_empty()).filter_map(|line| {
        // Continued descriptions are indented further.
        let name = line.strip_prefix("  ")?.split(' ').next()?;
        (!name.is_empty() && name != "help").then(|| name.to_owned())
    });
    names.collect()
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("pages");
    stdout(&run(&["man", "--out", out.to_str().unwrap()]));
    let page = |name: &str| {
        let path = out.join(format!("{name}.1"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let commands = commands();
    assert!(commands.len() > 15, "{commands:?}");
    for command in commands.iter().map(String::as_str).chain(["cache-show", "bench-engine"]) {
        let page = page(&format!("sconce-{command}"));
        assert!(page.contains(".SH SYNOPSIS"), "{command}");
        assert!(page.contains("DESCRIPTION"), "{command}");
        // Hyphens are escaped in roff.
        assert!(page.replace("\\-", "-").contains(&format!("sconce-{command}")), "{command}");
    }
    assert!(page("sconce").contains("SUBCOMMANDS"));
}

#[test]
fn one_page_goes_to_standard_output() {
    let of_all = stdout(&run(&["man"]));
    assert!(of_all.contains("sconce\\-serve(1)"), "{of_all}");
    let of_one = stdout(&run(&["man", "cache", "show"]));
    assert!(of_one.replace('\\', "").contains("--nodes-max"), "{of_one}");
    let wrong = run(&["man", "cache", "no-such"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(stderr(&wrong).contains("show, match"), "{}", stderr(&wrong));
}

#[test]
fn completion_scripts_name_every_command() {
    let commands = commands();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&run(&["completions", shell]));
        for command in &commands {
            assert!(script.contains(command.as_str()), "{shell} does not know {command}");
        }
    }
}

#[test]
fn the_script_for_bash_is_one_that_bash_can_read() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("sconce.bash");
    std::fs::write(&script, stdout(&run(&["completions", "bash"]))).unwrap();
    assert!(bash_reads(&script));
    // The check can tell.
    std::fs::write(&script, "if true; then\n").unwrap();
    assert!(!bash_reads(&script));
}

fn bash_reads(script: &Path) -> bool {
    let checked = Command::new("bash").arg("-n").arg(script).stderr(Stdio::null()).status();
    checked.expect("bash is installed").success()
}
