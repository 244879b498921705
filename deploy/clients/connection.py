"""How the examples reach a server: what their command lines have in common, and a channel made of it. The
options are those of `sconce`'s own commands."""
import argparse
import pathlib

import grpc

# What is shown to a server that asks for nothing.
PLAIN = argparse.Namespace(tls_ca=None, tls_cert=None, tls_key=None, token_file=None)


def arguments(description, *positional):
    """Parses a command line: (NAME, DEFAULT) each, and what is shown to the server."""
    parser = argparse.ArgumentParser(description=description)
    for name, default in positional:
        parser.add_argument(name, nargs="?", default=default, help=f"default: {default}")
    parser.add_argument("--tls-ca", metavar="FILE", type=pathlib.Path,
                        help="authorities that the server's certificate may come from, PEM; without it, plain text")
    parser.add_argument("--tls-cert", metavar="FILE", type=pathlib.Path, help="certificate to show, PEM")
    parser.add_argument("--tls-key", metavar="FILE", type=pathlib.Path, help="key of the certificate, PEM")
    parser.add_argument("--token-file", metavar="FILE", type=pathlib.Path, help="file with the token to show, alone")
    found = parser.parse_args()
    if (found.tls_cert is None) != (found.tls_key is None):
        parser.error("--tls-cert and --tls-key: expected both or neither")
    if found.tls_ca is None and (found.tls_cert or found.token_file):
        # gRPC's libraries do not send credentials in plain text.
        parser.error("--tls-cert, --tls-key and --token-file: expected --tls-ca with them")
    return found


def connect(target, shown, options=()):
    """A channel to `target`: HOST:PORT without a scheme, or any other name that gRPC takes."""
    if shown.tls_ca is None:
        return grpc.insecure_channel(target, options=options)
    key, certificate = (path and path.read_bytes() for path in (shown.tls_key, shown.tls_cert))
    credentials = grpc.ssl_channel_credentials(shown.tls_ca.read_bytes(), key, certificate)
    if shown.token_file is not None:
        token = grpc.access_token_call_credentials(shown.token_file.read_text().strip())
        credentials = grpc.composite_channel_credentials(credentials, token)
    return grpc.secure_channel(target, credentials, options=options)
