"""From images to image embeddings: encoder, alignment, fusion, output norm and projector."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fvl_lightning.core.types import NO_TOKEN, ImageSpec
from fvl_lightning.fusions.base import Fusion, build_fusion
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.connector.alignment import AlignedSources, SourceAlignment, drop_sources
from fvl_lightning.modeling.connector.inner_layers import EnterBlock, InnerLayers
from fvl_lightning.modeling.shapes import check_declarations, check_fused, check_projected, check_sources


class ImageEmbeddings(NamedTuple):
    """The features of I images that enter the language model.

    Attributes:
        features: [I, N, D], in place of the image placeholders.
        diagnostics: those of the fusion, such as {"mass/<source>": scalar}; none without images.
        inner_layers: {number of a block: [I, N_k, D]}.
    """

    features: Tensor
    diagnostics: dict[str, Tensor]
    inner_layers: dict[str, Tensor]


class ImageEmbedder:
    """The part of the model that embeds images; a mixin, so that its parts are children of the model."""

    config: Any
    training: bool
    encoder: Any
    fusion: Any
    language_model: Any
    inner_layers: Any

    def build_image_parts(self, config: FlorenceVLConfig) -> None:
        """Builds the parts between images and language model, and the language model, whose width they need."""
        encoder, fusion = config.choice("encoder"), config.choice("fusion")
        projector, language_model = config.choice("projector"), config.choice("language_model")
        config.record_plugins()
        self.encoder = encoder.component(encoder.config)
        component: type[Fusion] = fusion.component
        self.alignment = SourceAlignment(
            self.encoder.specs, config.normalize_sources, component.grids == "native", config.fused_sources
        )
        self.conditioned = component.is_conditioned(fusion.config)
        language = language_model.component(language_model.config)
        self.fusion = build_fusion(component, fusion.config, self.alignment.specs, language.dim)
        check_declarations(self.fusion, fusion.name)
        self.output_norm = nn.LayerNorm(self.fusion.output.dim) if config.normalize_output else nn.Identity()
        self.language_model = language
        self.projector = projector.component(projector.config, self.fusion.output, language.dim)
        self.inner_layers = None
        if self.fusion.inner_layers:
            blocks = language.blocks()
            self.inner_layers = InnerLayers(self.fusion, projector, blocks, self.projector.tokens, language.dim)
            for number in self.inner_layers.projectors:
                blocks[int(number)].register_forward_pre_hook(EnterBlock(self, number), with_kwargs=True)
        self.computes_all_sources = False
        """Whether an image also gets the sources that a routed fusion does not need for it."""
        self._shapes_are_checked = False  # until the first forward pass with images

    @property
    def image_spec(self) -> ImageSpec:
        """The size and normalisation of the model's images, and the number of tokens per image."""
        return ImageSpec(self.encoder.image_size, self.encoder.mean, self.encoder.std, self.projector.tokens)

    def get_image_features(
        self, pixel_values: Tensor, question_ids: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Returns the image embeddings [I, N, D] of [I, 3, P, P], as the language model gets them."""
        return self.embed_images(pixel_values, question_ids=question_ids).features

    def embed_images(
        self,
        pixel_values: Tensor | None = None,
        sources: dict[str, Tensor] | None = None,
        question_ids: Tensor | None = None,
    ) -> ImageEmbeddings:
        """Returns the image embeddings [I, N, D], those for inner layers, and the fusion's diagnostics.

        Without images (I = 0) one blank image is computed and dropped: with several ranks each of them must contribute
        to the gradient of every parameter, whatever its rows are.

        Args:
            pixel_values: [I, 3, P, P].
            sources: the encoder's output {source: [I, N_source, D_source]}, in place of `pixel_values`; AlignedSources
                go to the fusion as they are.
            question_ids: [I, L], the tokens of the question about each image, NO_TOKEN after it; for a conditioned
                fusion.

        Raises:
            ConfigError: in the first call, where a component returns another shape than it declares.
            ValueError: there are neither images nor sources, or the fusion reads the question and there is none.
        """
        if sources is None and pixel_values is None:
            raise ValueError("give pixel_values, or image_sources, which are the encoder's output for them")
        if sources is None:
            assert pixel_values is not None
            images, pixel_values = len(pixel_values), _or_blank(pixel_values)
        else:
            images = len(next(iter(sources.values())))
            sources = type(sources)({name: _or_blank(source) for name, source in sources.items()})
        inputs = {"question": self._question(question_ids, images)} if self.conditioned else {}
        if self.fusion.routed:
            aligned, inputs["routes"] = self._routed(pixel_values, sources, inputs.get("question"))
        else:
            computed = self.encoder(pixel_values) if sources is None else sources
            if not self._shapes_are_checked and not isinstance(computed, AlignedSources):
                check_sources(self._name("encoder"), self.encoder.specs, computed)
            aligned = self.alignment(computed)
        if self.training and self.config.source_dropout:
            aligned = drop_sources(aligned, self.config.source_dropout, inputs.get("routes"))
        fused = self.fusion(aligned, **inputs)
        self._check_fused(fused, max(images, 1))
        features = self.projector(self.output_norm(fused.features))
        inner = self.inner_layers.project(fused.inner_layers) if self.inner_layers is not None else {}
        self._check_projected(features, max(images, 1))
        if self.language_model.image_divisor != 1:
            features = features / self.language_model.image_divisor
        diagnostics = fused.diagnostics
        if self.fusion.routed:
            diagnostics = diagnostics | _loads(inputs["routes"], self.alignment.specs)
        inner = {number: values[:images] for number, values in inner.items()}
        return ImageEmbeddings(features[:images], diagnostics if images else {}, inner)

    def _question(self, question_ids: Tensor | None, images: int) -> Tensor:
        """Returns the embedding [I, C] of the question about each image, or of one blank where there are no images.

        Token embeddings are added one after the other, so that a question alone decides the bits of its embedding.
        No gradient flows into the token table.
        """
        if images == 0:
            question_ids = torch.full((1, 1), NO_TOKEN)
        if question_ids is None or len(question_ids) != max(images, 1):
            found = "no question_ids" if question_ids is None else f"{len(question_ids)} rows of question_ids"
            raise ValueError(
                f"fusion {self._name('fusion')} reads the question about each image: {found} for {images} images (the "
                "processor returns question_ids)"
            )
        device = next(self.projector.parameters()).device
        question_ids = question_ids.to(device)
        rows, columns = (question_ids != NO_TOKEN).nonzero(as_tuple=True)
        with torch.no_grad():
            embedded = self.language_model.embed(question_ids[rows, columns].unsqueeze(0))[0]
            sums = embedded.new_zeros(len(question_ids), embedded.shape[1]).index_add(0, rows, embedded)
            return sums / (question_ids != NO_TOKEN).sum(1, keepdim=True).clamp(min=1)

    def _routed(
        self, pixel_values: Tensor | None, sources: dict[str, Tensor] | None, question: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the aligned sources, zero where their weight is zero, and the weights [I, K].

        From pixels, a source is computed only for the images that need it. In training, and on several ranks, it is
        computed for one image at least: every rank must contribute to the gradient of every parameter, and take part
        where a sharded block is gathered.
        """
        at_least_one = self.training or (torch.distributed.is_available() and torch.distributed.is_initialized())
        if self.computes_all_sources and sources is None:
            sources = self.encoder(pixel_values)
        first = next(iter(sources.values())) if sources is not None else pixel_values
        assert first is not None
        everything = torch.arange(len(first), device=first.device)
        get: Any = None if sources is not None else self.encoder.on_demand(pixel_values)
        origins = self.alignment.origins
        read = {origins[name] for name in self.fusion.routing_sources}
        known = self.alignment(sources or {name: get(name, everything) for name in read})
        routes = self.fusion.route({name: known[name] for name in self.fusion.routing_sources}, question)
        aligned = {}
        for k, (name, spec) in enumerate(self.alignment.specs.items()):
            if name in known:
                values = known[name]
            else:
                rows = routes[:, k].nonzero().squeeze(1)
                if at_least_one and not len(rows):
                    rows = everything[:1]
                values = routes.new_zeros(len(first), spec.tokens, spec.dim)
                if len(rows):
                    found = self.alignment({origins[name]: get(origins[name], rows)})[name]
                    values = values.to(found.dtype).index_copy(0, rows, found)
            aligned[name] = values * (routes[:, k] != 0).to(values.dtype).view(-1, 1, 1)
        return aligned, routes

    def _check_fused(self, fused: Any, images: int) -> None:
        if not self._shapes_are_checked:
            check_fused(self._name("fusion"), self.fusion, images, fused)

    def _check_projected(self, features: Tensor, images: int) -> None:
        if not self._shapes_are_checked:
            check_projected(self._name("projector"), self.projector.tokens, self.language_model.dim, images, features)
            self._shapes_are_checked = True

    def _name(self, slot: str) -> str:
        """Returns the registered name of the component in a slot, for messages."""
        return getattr(self.config, slot)["name"]


def _loads(routes: Tensor, sources: Any) -> dict[str, Tensor]:
    """Returns {"load/<source>": the share of the images for which the source has a weight} for weights [I, K]."""
    shares = (routes.detach() != 0).float().mean(0)
    return {f"load/{name}": share for name, share in zip(sources, shares, strict=True)}


def _or_blank(images: Tensor) -> Tensor:
    """Returns the images or features [I, ...], or one blank if I = 0."""
    return images if len(images) else images.new_zeros(1, *images.shape[1:])
