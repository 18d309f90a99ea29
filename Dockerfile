# The images of the chart: docker build --target agent|device-plugin|scheduler-ext .
# The C library here is the oldest that tenants' images may have, for they load the shim.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo xtask dist

# The driver's libraries come from the node, so this one has a C library and a shell.
FROM debian:bookworm-slim AS agent
COPY --from=build /src/target/dist/node /opt/gpu-zone
ENTRYPOINT ["/opt/gpu-zone/bin/gpu-zoned"]

FROM scratch AS device-plugin
COPY --from=build /src/target/dist/static/gpu-zone-device-plugin /
ENTRYPOINT ["/gpu-zone-device-plugin"]

FROM scratch AS scheduler-ext
COPY --from=build /src/target/dist/static/gpu-zone-scheduler-ext /
USER 65532:65532
ENTRYPOINT ["/gpu-zone-scheduler-ext"]
