//! The forward pass, once, for every family: what differs between BitNet, Llama, Qwen2, Gemma 3 and MiniCPM is data in
//! [`ModelConfig`] and the presence of a weight.

use std::sync::Arc;

use rayon::prelude::*;
use ternbench_kernels::bytes::Aligned;
use ternbench_kernels::dense::Activations;
use ternbench_kernels::driver::{self, Input, Output, Scratch};
use ternbench_kernels::ops::{RmsNorm, for_each_row};
use ternbench_kernels::probe::Arithmetic;
use ternbench_kernels::{Bytes, DenseMatrix, Dispatch, Linear, Pool, Screen, Team, Weights, ops};

use crate::attention;
use crate::breakdown::{Breakdown, Part};
use crate::config::{Activation, ModelConfig};
use crate::error::LoadError;
use crate::head::HeadSearch;
use crate::kv_cache;
use crate::layer::{Census, Gain, Layer};
use crate::rope::Rope;
use crate::segment::{ForwardError, Logits, Segment};
use crate::weights::{VectorName, WeightSource};

/// A model with its linear layers packed for one kernel, or for one of decode and one of prefill.
pub struct Transformer {
    config: ModelConfig,
    embedding: DenseMatrix,
    layers: Vec<Layer>,
    output_norm: Gain,
    head: Linear,
    screen: Option<Arc<Screen>>,
    rope: Rope,
    local_rope: Option<Rope>,
    kernels: Dispatch,
    census: Census,
}

/// Layers whose packed weights share a buffer: enough to fill huge pages, few enough that two copies of them fit while loading.
const LAYERS_TOGETHER: usize = 4;

/// Packed weights side by side, in the order in which a token reads them.
fn gather(layers: &mut [Layer]) {
    let mut packed: Vec<&mut Bytes> =
        layers.iter_mut().flat_map(Layer::linears_mut).flat_map(Linear::packed_mut).collect();
    Bytes::gather(&mut packed);
}

/// Gains side by side, on a huge page: those of 2B4T lay on 450 small ones, whose page walks took 0.5 to 4 % of a token on a virtual
/// machine, by the hour.
fn gather_gains(layers: &mut [Layer], output_norm: &mut Gain) {
    let gains = layers.iter_mut().flat_map(Layer::norms_mut).chain([output_norm]);
    Bytes::gather(&mut gains.map(|gain| &mut gain.0).collect::<Vec<_>>());
}

/// Bytes that one forward pass of one token reads, by part; the KV cache comes on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// Linear layers, as packed for decode.
    pub linear: u64,
    /// Linear layers packed a second time, for a prefill kernel of another layout.
    pub second_copy: u64,
    /// The head.
    pub head: u64,
    /// The quantised copy that screens it, where there is one. Greedy decoding reads it and a few rows of the head instead of the
    /// head.
    pub screen: u64,
    /// The embedding, where the head is another tensor. One row of it is read per token.
    pub embedding: u64,
    /// Norms and biases.
    pub vectors: u64,
}

impl WeightBytes {
    /// Everything that decoding a token reads, with the whole head.
    pub fn per_token(&self) -> u64 {
        self.linear + self.head + self.vectors
    }

    /// Everything that is held.
    pub fn held(&self) -> u64 {
        self.per_token() + self.second_copy + self.embedding + self.screen
    }
}

/// The activations of a pass, kept between passes.
#[derive(Default)]
pub(crate) struct Buffers {
    hidden: Aligned<f32>,
    normed: Aligned<f32>,
    q: Aligned<f32>,
    k: Aligned<f32>,
    v: Aligned<f32>,
    attention: Aligned<f32>,
    gated: Aligned<f32>,
    out: Aligned<f32>,
    logits: Aligned<f32>,
    pub(crate) head: HeadSearch,
    angles: Vec<f32>,
    local_angles: Vec<f32>,
    scratch: Scratch,
}

impl Buffers {
    /// The logits of the last pass: none, where the head was screened.
    pub(crate) fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let Self { hidden, normed, q, k, v, attention, gated, out, logits, .. } = self;
        let floats = [hidden, normed, q, k, v, attention, gated, out, logits].map(Aligned::bytes);
        let angles = (self.angles.capacity() + self.local_angles.capacity()) * 4;
        floats.iter().sum::<usize>() + angles + self.scratch.bytes() + self.head.bytes()
    }
}

impl Transformer {
    /// Loads every tensor of `source` and packs the ternary ones for `kernels`, layers in parallel on `pool`. `progress` is
    /// called with the number of layers done.
    pub fn load(
        source: &dyn WeightSource,
        kernels: impl Into<Dispatch>,
        pool: &Pool,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self, LoadError> {
        let kernels = kernels.into();
        let config = source.config().clone();
        let done = std::sync::atomic::AtomicUsize::new(0);
        let load_layer = |i| {
            let layer = Layer::load(source, &config, i, &kernels);
            progress(1 + done.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
            layer
        };
        let (mut layers, embedding, head) = pool.rayon().install(|| {
            let layers = (0..config.n_layers).into_par_iter().map(load_layer).collect::<Result<Vec<Layer>, _>>()?;
            Ok::<_, LoadError>((layers, source.embedding()?, source.head()?))
        })?;
        pool.rayon().install(|| layers.par_chunks_mut(LAYERS_TOGETHER).for_each(gather));
        let mut output_norm = Gain::from(source.vector(VectorName::OutputNorm)?);
        gather_gains(&mut layers, &mut output_norm);
        let head = head.unwrap_or_else(|| embedding.clone());
        // A ternary model's head takes its input as it is, or it could not be screened, and so does one of floats.
        let ternary = layers.first().is_some_and(|layer| matches!(layer.q.weights, Weights::Ternary(_)));
        let as_it_is = ternary || head.ty().block_len() == 1;
        let activations = if as_it_is { Activations::F32 } else { kernels.activations };
        Ok(Self {
            rope: Rope::new(&config, config.rope_theta, config.rope_scaling),
            local_rope: config.sliding.map(|sliding| Rope::new(&config, sliding.rope_theta, None)),
            output_norm,
            head: Linear::dense(head, activations),
            screen: None,
            embedding,
            census: Census::of(&layers),
            layers,
            kernels,
            config,
        })
    }

    /// Shape and family.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The kernels of the ternary layers, or of nothing when the model has none (see [`Self::kernel_name`]).
    pub fn kernels(&self) -> &Dispatch {
        &self.kernels
    }

    /// The name of the kernel that runs the linear layers, ternary or dense; `a+b` where prefill has another than decode.
    pub fn kernel_name(&self) -> String {
        match &self.layers[0].q.weights {
            Weights::Ternary(_) => self.kernels.default.name(),
            Weights::Dense { kernel, .. } => kernel.info().name.to_owned(),
        }
    }

    /// The name of the kernel that runs the first linear layer for a batch of `m` tokens.
    pub fn kernel_name_at(&self, m: usize) -> &'static str {
        self.layers[0].q.kernel_name(m)
    }

    /// What the linear layers multiply.
    pub fn arithmetic(&self) -> Arithmetic {
        self.layers[0].q.arithmetic()
    }

    /// What the head multiplies.
    pub fn head_arithmetic(&self) -> Arithmetic {
        self.head.arithmetic()
    }

    /// The storage type of the linear layers: `ternary`, or the dense type's name.
    pub fn weights_name(&self) -> &'static str {
        match &self.layers[0].q.weights {
            Weights::Ternary(_) => "ternary",
            Weights::Dense { matrix, .. } => matrix.ty().name(),
        }
    }

    /// The storage type of the head.
    pub fn head_name(&self) -> &'static str {
        match &self.head.weights {
            Weights::Ternary(_) => "ternary",
            Weights::Dense { matrix, .. } => matrix.ty().name(),
        }
    }

    /// Makes the copy of the head that greedy decoding screens it with, on `pool`, or takes another model's of the same weights.
    /// Nothing changes where the head cannot be screened.
    pub fn screen_head(&mut self, pool: &Pool, shared: Option<Arc<Screen>>) {
        if let Weights::Dense { kernel, matrix } = &self.head.weights {
            // A head that rounds its input, of a model that shares another's weights, cannot share its screen.
            let shared = shared.filter(|_| kernel.info().activations == Activations::F32);
            self.screen = shared.or_else(|| pool.rayon().install(|| Screen::new(*kernel, matrix)).map(Arc::new));
        }
    }

    /// Takes a copy of the head that was made before; `false` where it does not fit.
    pub fn screen_with(&mut self, copy: Bytes) -> bool {
        if let Weights::Dense { kernel, matrix } = &self.head.weights {
            self.screen = Screen::from_packed(*kernel, matrix, copy).map(Arc::new);
        }
        self.screen.is_some()
    }

    /// The linear layers of a block, in the order of [`LinearName::ALL`].
    pub(crate) fn linears(&self, layer: usize) -> [&Linear; 7] {
        self.layers[layer].linears()
    }

    /// The copy that the head is screened with.
    pub fn screen(&self) -> Option<&Arc<Screen>> {
        self.screen.as_ref()
    }

    /// Whether screening the head is expected to pay: it has a fast kernel here, reads at most 60 % of the bytes, and the head
    /// does not stay in a cache, where multiplying by all of it is faster.
    pub fn screen_pays(&self) -> bool {
        const LEAST_BYTES: usize = 48 << 20;
        let Weights::Dense { matrix, .. } = &self.head.weights else { return false };
        let bytes = matrix.data().len();
        Screen::is_fast() && bytes >= LEAST_BYTES && Screen::bytes_for(matrix) as f64 <= 0.6 * bytes as f64
    }

    /// What was counted while loading.
    pub fn census(&self) -> Census {
        self.census
    }

    /// Bytes held, by part.
    pub fn weight_bytes(&self) -> WeightBytes {
        let mut bytes = WeightBytes {
            head: self.head.held_bytes() as u64,
            screen: self.screen.as_ref().map_or(0, |screen| screen.bytes() as u64),
            ..WeightBytes::default()
        };
        if !self.config.tied {
            bytes.embedding = self.embedding.data().len() as u64;
        }
        bytes.vectors = 4 * self.output_norm.len() as u64;
        for layer in &self.layers {
            for linear in layer.linears() {
                bytes.linear += linear.weight_bytes(1) as u64;
                bytes.second_copy += (linear.held_bytes() - linear.weight_bytes(1)) as u64;
                bytes.vectors += 4 * linear.bias.as_ref().map_or(0, Vec::len) as u64;
            }
            bytes.vectors += 4 * layer.norms().map(|norm| norm.len() as u64).sum::<u64>();
        }
        bytes
    }

    /// Bytes of linear layers that decoding a token reads in `part`.
    pub fn linear_bytes(&self, part: Part) -> u64 {
        self.layers.iter().flat_map(|layer| layer.linears_of(part)).map(|linear| linear.weight_bytes(1) as u64).sum()
    }

    /// Bytes of the embedding, whether or not it is the head as well.
    pub fn embedding_bytes(&self) -> u64 {
        self.embedding.data().len() as u64
    }

    /// Multiply-adds per token in the linear layers, and in the head (which prefill runs for one token only).
    pub fn macs_per_token(&self) -> (u64, u64) {
        (self.config.linear_parameters(), (self.config.vocab * self.config.hidden) as u64)
    }

    /// Leaves in `b` the logits that the segments ask for; with `top` the so many best of each position, and no others where the head
    /// was screened.
    pub(crate) fn forward(
        &self,
        team: &Team,
        b: &mut Buffers,
        segments: &mut [Segment<'_>],
        top: Option<usize>,
        time: &mut Breakdown,
    ) -> Result<(), ForwardError> {
        self.check(segments)?;
        for segment in segments.iter_mut() {
            while let Some(head) = segment.take_head() {
                self.pass(team, b, &mut [head], None, time);
            }
        }
        self.pass(team, b, segments, top, time);
        time.add_waits(team);
        Ok(())
    }

    /// All layers, once, and the logits asked for.
    fn pass(
        &self,
        team: &Team,
        b: &mut Buffers,
        segments: &mut [Segment<'_>],
        top: Option<usize>,
        time: &mut Breakdown,
    ) {
        let m = segments.iter().map(|segment| segment.tokens.len()).sum();
        time.start();
        self.embed(team, b, segments, m);
        time.end(Part::Other);
        for (i, layer) in self.layers.iter().enumerate() {
            self.attention_block(team, b, segments, m, i, layer, time);
            self.ffn_block(team, b, m, layer, time);
        }
        for segment in segments.iter_mut() {
            segment.cache.advance(segment.tokens.len());
        }
        self.logits(team, b, segments, top, time);
    }

    fn check(&self, segments: &[Segment<'_>]) -> Result<(), ForwardError> {
        for segment in segments {
            let needed = segment.cache.len() + segment.tokens.len();
            if segment.tokens.is_empty() {
                return Err(ForwardError::Empty);
            }
            if needed > segment.cache.capacity() {
                return Err(ForwardError::Context { needed, capacity: segment.cache.capacity() });
            }
            if let Some(&id) = segment.tokens.iter().find(|&&id| id as usize >= self.config.vocab) {
                return Err(ForwardError::Token { id, vocab: self.config.vocab });
            }
        }
        Ok(())
    }

    /// `h = E[ids]`, and the RoPE angles of every token's position.
    fn embed(&self, team: &Team, b: &mut Buffers, segments: &[Segment<'_>], m: usize) {
        let width = self.config.hidden;
        b.hidden.resize(m * width);
        b.angles.clear();
        b.local_angles.clear();
        let mut ids = Vec::with_capacity(m);
        for segment in segments {
            for (i, &id) in segment.tokens.iter().enumerate() {
                ids.push(id as usize);
                self.rope.angles(segment.cache.len() + i, &mut b.angles);
                if let Some(rope) = &self.local_rope {
                    rope.angles(segment.cache.len() + i, &mut b.local_angles);
                }
            }
        }
        for_each_row(team, &mut b.hidden, width, |token, row| {
            self.embedding.dequantize_row(ids[token], row);
            if self.config.embedding_scale != 1.0 {
                row.iter_mut().for_each(|h| *h *= self.config.embedding_scale);
            }
        });
    }

    /// The rows of `outputs`: `x`, quantised where the matrices are ternary, times the matrices.
    fn linear(
        team: &Team,
        scratch: &mut Scratch,
        x: Input<'_>,
        m: usize,
        outputs: &mut [Output<'_>],
        part: Part,
        time: &mut Breakdown,
    ) {
        driver::prepare(team, scratch, x, m, outputs);
        time.end(Part::Other);
        driver::compute(team, scratch, x, m, outputs);
        time.end(part);
    }

    /// `h += Wo · sub_norm(attention(norm(h)))`.
    #[expect(clippy::too_many_arguments, reason = "the state of one pass")]
    fn attention_block(
        &self,
        team: &Team,
        b: &mut Buffers,
        segments: &mut [Segment<'_>],
        m: usize,
        index: usize,
        layer: &Layer,
        time: &mut Breakdown,
    ) {
        let (q_dim, kv_dim) = (self.config.q_dim(), self.config.kv_dim());
        let eps = self.config.norm_eps;
        b.q.resize(m * q_dim);
        b.k.resize(m * kv_dim);
        b.v.resize(m * kv_dim);
        let qkv = &mut [
            Output::store(&layer.q, &mut b.q),
            Output::store(&layer.k, &mut b.k),
            Output::store(&layer.v, &mut b.v),
        ];
        Self::linear(team, &mut b.scratch, normed(&b.hidden, Some(&layer.attn_norm), eps), m, qkv, Part::Qkv, time);

        let local = self.config.window(index);
        let (rope, angles) = match (&self.local_rope, local) {
            (Some(rope), Some(_)) => (rope, &b.local_angles),
            _ => (&self.rope, &b.angles),
        };
        self.rotate(team, rope, angles, layer.q_norm.as_deref(), &mut b.q, q_dim);
        self.rotate(team, rope, angles, layer.k_norm.as_deref(), &mut b.k, kv_dim);
        kv_cache::store(team, segments, index, &b.k, &b.v);
        b.attention.resize(m * q_dim);
        let window = local.map(|local| local.window);
        attention::attend(team, &self.config, segments, index, window, &b.q, &mut b.attention);
        time.end(Part::Attention);

        let x = normed(&b.attention, layer.attn_sub_norm.as_deref(), eps);
        let residual = Residual { hidden: &mut b.hidden, out: &mut b.out, post_norm: layer.post_attn_norm.as_deref() };
        self.add(team, &mut b.scratch, x, m, &layer.o, residual, Part::O, time);
    }

    /// `h += Wdown · sub_norm(act(Wgate · norm(h)) * (Wup · norm(h)))`.
    fn ffn_block(&self, team: &Team, b: &mut Buffers, m: usize, layer: &Layer, time: &mut Breakdown) {
        let eps = self.config.norm_eps;
        let activate: ops::Gate = match self.config.activation {
            Activation::Relu2 => ops::relu2_gate,
            Activation::Silu => ops::silu_gate,
            Activation::GeluTanh => ops::gelu_gate,
        };
        b.gated.resize(m * self.config.ffn);
        let gated = &mut [Output::gated(&layer.gate, &layer.up, activate, &mut b.gated)];
        Self::linear(team, &mut b.scratch, normed(&b.hidden, Some(&layer.ffn_norm), eps), m, gated, Part::GateUp, time);

        let x = normed(&b.gated, layer.ffn_sub_norm.as_deref(), eps);
        let residual = Residual { hidden: &mut b.hidden, out: &mut b.out, post_norm: layer.post_ffn_norm.as_deref() };
        self.add(team, &mut b.scratch, x, m, &layer.down, residual, Part::Down, time);
    }

    /// `h += residual_scale · post_norm(W · x)`.
    #[expect(clippy::too_many_arguments, reason = "the state of one pass")]
    fn add(
        &self,
        team: &Team,
        scratch: &mut Scratch,
        x: Input<'_>,
        m: usize,
        linear: &Linear,
        Residual { hidden, out, post_norm }: Residual<'_>,
        part: Part,
        time: &mut Breakdown,
    ) {
        let scale = self.config.residual_scale;
        let Some(gain) = post_norm else {
            return Self::linear(team, scratch, x, m, &mut [Output::add(linear, scale, hidden)], part, time);
        };
        out.resize(hidden.len());
        Self::linear(team, scratch, x, m, &mut [Output::store(linear, out)], part, time);
        let width = gain.len();
        let norm = RmsNorm { gain, eps: self.config.norm_eps };
        for_each_row(team, out, width, |_, out| ops::rms_norm_in_place(out, norm));
        for_each_row(team, hidden, width, |token, hidden| ops::axpy(scale, &out[token * width..][..width], hidden));
        time.end(Part::Other);
    }

    /// `logits = norm(h) · Eᵀ` at the positions asked for.
    fn logits(&self, team: &Team, b: &mut Buffers, segments: &[Segment<'_>], top: Option<usize>, time: &mut Breakdown) {
        let width = self.config.hidden;
        let starts_at = |segment: &Segment<'_>| match segment.logits {
            Logits::None => segment.tokens.len(),
            Logits::Last => segment.tokens.len() - 1,
            Logits::From(index) => index.min(segment.tokens.len()),
        };
        let rows = segments.iter().map(|segment| segment.tokens.len() - starts_at(segment)).sum();
        b.normed.resize(rows * width);
        let mut wanted = Vec::with_capacity(rows);
        let mut first = 0;
        for segment in segments {
            wanted.extend(first + starts_at(segment)..first + segment.tokens.len());
            first += segment.tokens.len();
        }
        let norm = RmsNorm { gain: &self.output_norm, eps: self.config.norm_eps };
        for_each_row(team, &mut b.normed, width, |row, out| {
            ops::rms_norm(&b.hidden[wanted[row] * width..][..width], norm, out);
        });
        time.end(Part::Other);
        b.logits.resize(0);
        if let (Some(k), Some(screen)) = (top.filter(|_| rows > 0), &self.screen)
            && b.head.search(screen, team, &b.normed, rows, self.config.logit_scale, k)
        {
            time.end(Part::Head);
            return;
        }
        b.logits.resize(rows * self.config.vocab);
        if rows > 0 {
            b.head.count.positions += rows as u64;
            b.head.count.whole += 1;
            b.head.count.in_whole += rows as u64;
            driver::multiply(
                team,
                &mut b.scratch,
                Input::Rows(&b.normed),
                rows,
                &mut [Output::store(&self.head, &mut b.logits)],
            );
        }
        if self.config.logit_scale != 1.0 {
            b.logits.iter_mut().for_each(|logit| *logit *= self.config.logit_scale);
        }
        if let Some(k) = top {
            b.head.take_from(&b.logits, self.config.vocab, k);
        }
        time.end(Part::Head);
    }

    /// Normalises (Gemma) and rotates every head of `x`, `width` values a token.
    fn rotate(&self, team: &Team, rope: &Rope, angles: &[f32], gain: Option<&[f32]>, x: &mut [f32], width: usize) {
        let per_token = self.config.head_dim / 2 * 2;
        for_each_row(team, x, width, |token, row| {
            for head in row.chunks_exact_mut(self.config.head_dim) {
                if let Some(gain) = gain {
                    ops::rms_norm_in_place(head, RmsNorm { gain, eps: self.config.norm_eps });
                }
                rope.rotate(head, &angles[token * per_token..][..per_token]);
            }
        });
    }
}

/// Where [`Transformer::add`] adds, and how.
struct Residual<'b> {
    hidden: &'b mut Aligned<f32>,
    /// For the products, where they are normalised first.
    out: &'b mut Aligned<f32>,
    post_norm: Option<&'b [f32]>,
}

/// The rows of `x`, with an RMSNorm over them where there is a gain.
fn normed<'x>(x: &'x [f32], gain: Option<&'x [f32]>, eps: f32) -> Input<'x> {
    gain.map_or(Input::Rows(x), |gain| Input::Normed(x, RmsNorm { gain, eps }))
}
