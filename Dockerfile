# syntax=docker/dockerfile:1
# The server as an image:
#   docker build --target cpu --tag sconce .
#   docker build --target cuda --tag sconce-cuda .
# Tags are without digests, so that the file does not age; where builds must repeat, give the base
# images by digest with --build-arg.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${RUST_IMAGE} AS chef
RUN cargo install --locked cargo-chef --version 0.1.78
WORKDIR /build

# What must be compiled before our own code: changes only with the manifests.
FROM chef AS planner
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY kernels kernels
COPY models models
COPY server server
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS builder
# Features of sconce-server, separated by commas, such as object-store.
ARG FEATURES=""
COPY --from=planner /build/recipe.json recipe.json
RUN cargo chef cook --release --locked --recipe-path recipe.json --package sconce-server \
      ${FEATURES:+--features "$FEATURES"}
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY kernels kernels
COPY models models
COPY server server
# After what is cached: every commit has another.
ARG SCONCE_COMMIT=""
ENV SCONCE_COMMIT=$SCONCE_COMMIT
RUN cargo build --release --locked --package sconce-server --bin sconce \
      ${FEATURES:+--features "$FEATURES"}

# The same for NVIDIA GPUs. deploy/cuda/build.sh patches two dependencies as it starts, which a recipe
# cannot, so their builds are kept in caches of the builder instead of layers. nvcc comes from PyPI.
FROM ${RUST_IMAGE} AS builder-cuda
# Without a version: a release of Debian fixes it, but for updates, which take the older one away.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
ARG FEATURES=""
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY kernels kernels
COPY models models
COPY server server
COPY deploy/cuda deploy/cuda
ARG SCONCE_COMMIT=""
ENV SCONCE_COMMIT=$SCONCE_COMMIT
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,sharing=locked \
    deploy/cuda/build.sh build --release --locked --package sconce-server --bin sconce \
      --features "cuda${FEATURES:+,$FEATURES}" \
    && cp target/cuda/build/release/sconce /usr/local/bin/sconce

# No shell, no package manager, user 65532. Probes are gRPC or HTTP; `sconce health` is the same by
# hand. deploy/check_runtime.sh starts the program with the libraries of this image alone.
FROM ${RUNTIME_IMAGE} AS runtime
ARG SCONCE_COMMIT=""
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="sconce" \
      org.opencontainers.image.description="gRPC server for language models, on candle" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$SCONCE_COMMIT"
USER 65532:65532
# gRPC, and the admin port where one is set.
EXPOSE 50051 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/sconce"]
CMD ["serve", "--listen", "0.0.0.0:50051"]

# The driver, of release 580 or later, is put into the container by NVIDIA's runtime, in a folder that
# depends on it; no other library of CUDA is needed.
FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0" \
    LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu:/usr/lib/aarch64-linux-gnu:/usr/lib64:/usr/local/nvidia/lib64
COPY --from=builder-cuda /usr/local/bin/sconce /usr/local/bin/sconce

# Last, so that a build without --target makes it.
FROM runtime AS cpu
COPY --from=builder /build/target/release/sconce /usr/local/bin/sconce
