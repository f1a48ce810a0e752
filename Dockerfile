# Each image holds one static binary and nothing else. Build the binaries first: make binaries.
# The build context is the folder with the binaries:
#   docker build --target operator -f Dockerfile target/x86_64-unknown-linux-gnu/release
FROM scratch AS runner
COPY paddock-runner /paddock-runner
USER 65532:65532
ENTRYPOINT ["/paddock-runner"]

FROM scratch AS operator
COPY paddock-operator /paddock-operator
USER 65532:65532
ENTRYPOINT ["/paddock-operator"]

FROM scratch AS egress
COPY paddock-egress /paddock-egress
USER 65532:65532
ENTRYPOINT ["/paddock-egress"]
