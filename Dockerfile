# Build: docker build --tag mer-r1 .        Smaller, to predict only: --build-arg EXTRAS=predict
# Run:   docker run --rm --gpus all --volume "$PWD/data:/mer-r1/data" mer-r1 mer-r1 predict data/clip.mp4 --model ...
FROM python:3.11-slim

RUN apt-get update && apt-get install --yes --no-install-recommends make git && rm -rf /var/lib/apt/lists/* \
  && useradd --create-home mer && install --directory --owner mer /mer-r1
USER mer
WORKDIR /mer-r1

COPY --chown=mer . .
ARG EXTRAS=train,llm,scenes
RUN make venv EXTRAS="$EXTRAS"
ENV PATH="/mer-r1/.venv/bin:$PATH"
CMD ["mer-r1", "--help"]
