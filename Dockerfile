# syntax=docker/dockerfile:1
# The server as an image: `docker build --target cpu -t sconce .`
# Tags are without digests, so that the file does not age; pin them where builds must repeat.

FROM rust:1.95-bookworm AS chef
RUN cargo install --locked cargo-chef --version 0.1.78
WORKDIR /build

# What must be compiled before our own code: changes only with the manifests.
FROM chef AS planner
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY kernels kernels
COPY fuzz fuzz
COPY models models
COPY server server
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS builder
ARG SCONCE_COMMIT=""
ENV SCONCE_COMMIT=$SCONCE_COMMIT
COPY --from=planner /build/recipe.json recipe.json
RUN cargo chef cook --release --locked --recipe-path recipe.json --package sconce-server
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY kernels kernels
COPY fuzz fuzz
COPY models models
COPY server server
RUN cargo build --release --locked --package sconce-server --bin sconce

# No shell, no package manager, user 65532. Probes are gRPC; `sconce health` is the same by hand.
FROM gcr.io/distroless/cc-debian12:nonroot AS cpu
LABEL org.opencontainers.image.title="sconce" \
      org.opencontainers.image.description="gRPC server for language models, on candle" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /build/target/release/sconce /usr/local/bin/sconce
EXPOSE 50051
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/sconce"]
CMD ["serve", "--listen", "0.0.0.0:50051"]
