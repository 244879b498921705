//! A server with TLS and tokens, and commands that show and expect them.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};

use crate::harness::{Server, run, sconce, stderr, stdout};

/// Files of a server and its clients: an authority, certificates of both sides, tokens.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().expect("a temp dir"));
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("makes a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("signs");
        files.write("ca.crt", &authority.as_ref().pem());
        for (name, purpose) in [
            ("server", ExtendedKeyUsagePurpose::ServerAuth),
            ("client", ExtendedKeyUsagePurpose::ClientAuth),
        ] {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
            params.extended_key_usages = vec![purpose];
            let key = KeyPair::generate().expect("makes a key");
            let certificate = params.signed_by(&key, &authority).expect("signs");
            files.write(&format!("{name}.crt"), &certificate.pem());
            files.write(&format!("{name}.key"), &key.serialize_pem());
        }
        files.write("tokens", "ci:a-token-of-the-tests\n");
        files.write("right.token", "a-token-of-the-tests\n");
        files.write("wrong.token", "b-token-of-the-tests\n");
        files
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("writes");
    }

    fn path(&self, name: &str) -> String {
        let path: PathBuf = Path::new(self.0.path()).join(name);
        path.to_str().expect("is UTF-8").to_owned()
    }

    /// Starts a server with these flags, each with a file.
    fn serve(&self, flags: &[(&str, &str)]) -> Server {
        let mut command = sconce(&["serve", "--listen", "127.0.0.1:0", "--model", "sim=sim:"]);
        for (flag, file) in flags {
            command.args([(*flag).to_owned(), self.path(file)]);
        }
        command.env("SCONCE__SERVER__WITHDRAWAL", "0s");
        Server::spawn(command)
    }

    /// Runs a command against `https://address` with these flags, each with a file.
    fn ask(
        &self,
        command: &[&str],
        server: &Server,
        flags: &[(&str, &str)],
    ) -> std::process::Output {
        let address = format!("https://{}", server.address);
        let mut args: Vec<String> = command.iter().map(|arg| (*arg).to_owned()).collect();
        args.extend(["--server".to_owned(), address]);
        for (flag, file) in flags {
            args.extend([(*flag).to_owned(), self.path(file)]);
        }
        run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

const READY: &[&str] = &["health", "--wait", "--service", "readiness"];

#[test]
fn a_command_asks_over_tls_with_a_token() {
    let files = Files::new();
    let flags =
        [("--tls-cert", "server.crt"), ("--tls-key", "server.key"), ("--auth-tokens", "tokens")];
    let server = files.serve(&flags);
    let ca = ("--tls-ca", "ca.crt");
    // Health needs no token.
    assert_eq!(stdout(&files.ask(READY, &server, &[ca])), "SERVING\n");
    let token = ("--token-file", "right.token");
    assert!(stdout(&files.ask(&["models"], &server, &[ca, token])).contains("sim"));
    let asked = ["complete", "--model", "sim", "--max-tokens", "4", "hello"];
    assert!(!stdout(&files.ask(&asked, &server, &[ca, token])).is_empty());
    for flags in [&[ca][..], &[ca, ("--token-file", "wrong.token")]] {
        let refused = files.ask(&["models"], &server, flags);
        assert_eq!(refused.status.code(), Some(69));
        assert!(stderr(&refused).contains("UNAUTHENTICATED"), "{}", stderr(&refused));
        assert!(!stderr(&refused).contains("token-of-the-tests"), "{}", stderr(&refused));
    }
    // Without the role that it takes.
    let load = files.ask(&["load", "other", "sim:"], &server, &[ca, token]);
    assert!(stderr(&load).contains("PERMISSION_DENIED"), "{}", stderr(&load));
}

#[test]
fn a_command_shows_a_certificate_where_one_is_due() {
    let files = Files::new();
    let flags =
        [("--tls-cert", "server.crt"), ("--tls-key", "server.key"), ("--tls-client-ca", "ca.crt")];
    let server = files.serve(&flags);
    let ca = ("--tls-ca", "ca.crt");
    let pair = [("--tls-cert", "client.crt"), ("--tls-key", "client.key")];
    assert_eq!(stdout(&files.ask(READY, &server, &[ca, pair[0], pair[1]])), "SERVING\n");
    let refused = files.ask(&["models"], &server, &[ca]);
    assert_eq!(refused.status.code(), Some(69), "{}", stderr(&refused));
}

#[test]
fn what_means_nothing_is_refused_with_what_was_expected() {
    let files = Files::new();
    let ca = files.path("ca.crt");
    let token = files.path("ca.crt");
    for (args, part) in [
        (&["models", "--server", "https://127.0.0.1:1"][..], "--tls-ca"),
        (&["models", "--server", "127.0.0.1:1", "--tls-ca", &ca], "https://"),
        (&["models", "--tls-cert", &ca], "--tls-key"),
        (&["models", "--token-file", &token], "a token, alone"),
        (&["models", "--token-file", "/none"], "/none"),
        (&["complete", "--path", "sim:", "--token-file", &token, "x"], "a server of its own"),
        (&["serve", "--tls-cert", &ca], "--tls-key"),
    ] {
        let refused = run(args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(part), "{args:?}: {}", stderr(&refused));
    }
    let tokens = run(&["serve", "--listen", "127.0.0.1:0", "--auth-tokens", "/none"]);
    assert_eq!(tokens.status.code(), Some(64));
    assert!(stderr(&tokens).contains("server.auth.tokens"), "{}", stderr(&tokens));
}

#[test]
fn a_server_of_this_process_asks_nobody_for_a_name() {
    let files = Files::new();
    let config = files.path("config.toml");
    let text = format!("[server.auth]\ntokens = \"{}\"\n", files.path("tokens"));
    std::fs::write(&config, text).expect("writes");
    let asked = ["complete", "--path", "sim:", "--config", &config, "--max-tokens", "4", "hello"];
    assert!(!stdout(&run(&asked)).is_empty());
}
