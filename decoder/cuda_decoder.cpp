#include "cuda_decoder.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>

#include "append_kv_launch.h"
#include "check_config.h"
#include "cuda_errors.h"
#include "device_guard.h"
#include "embed_launch.h"
#include "feed_tokens_launch.h"
#include "llm_decoder/errors.h"
#include "norm_launch.h"
#include "paged_attention_launch.h"
#include "token_weights.h"

namespace llm_decoder {
namespace gpu {
namespace {

constexpr char kPlace[] = "CUDADecoder";

const ModelConfig& checked(const ModelConfig& c) {
  check_config(kPlace, c);
  const auto check_multiple = [](std::int32_t value, const char* name) {
    check_arg(value % 8 == 0, kPlace, name, " must be a multiple of 8 on a GPU, got ", value);
  };
  check_multiple(c.hidden_size, "hidden_size");
  check_multiple(c.intermediate_size, "intermediate_size");
  check_multiple(c.head_dim, "head_dim");
  check_arg(c.head_dim <= kMaxHeadDim, kPlace, "head_dim must be at most ", kMaxHeadDim, " on a GPU, got ", c.head_dim);
  check_arg(c.vocab_size <= kMaxVocabSize, kPlace, "vocab_size must be at most ", kMaxVocabSize, " on a GPU, got ",
            c.vocab_size);
  return c;
}

const CudaOptions& checked(const CudaOptions& options) {
  check_arg(options.dtype == Dtype::bf16 || options.dtype == Dtype::f16, kPlace,
            "dtype must be bfloat16 or float16, got ", dtype_name(options.dtype));
  return options;
}

std::shared_ptr<OwnedStream> stream_on(int device) {
  check_arg(device >= 0 && device < n_devices(), kPlace, "device must be in [0, ", n_devices(), "), got ", device);
  const DeviceGuard guard(device);
  return std::make_shared<OwnedStream>();
}

AttentionCut cut_for(const CudaOptions& options) {
  const DeviceProperties device = device_properties(options.device);
  AttentionCut cut;
  cut.n_blocks = kBlocksPerSm * device.n_sms;
  cut.wide_rows = wide_rows_for(device);
  cut.fixed_split = options.is_deterministic ? kMinSplit : 0;
  return cut;
}

std::unique_ptr<GpuProducts> products_for(const CudaOptions& options, Stream stream) {
  const DeviceGuard guard(options.device);
  GpuProductsOptions products;
  if (options.is_deterministic) products.few_rows = std::numeric_limits<int>::max();
  return std::make_unique<GpuProducts>(options.dtype, make_gemm(options.gemm_libraries), stream, products);
}

bool graphs_are_switched_off() {
  constexpr char kVariable[] = "LLM_DECODER_CUDA_GRAPHS";
  const char* const value = std::getenv(kVariable);
  if (value == nullptr || *value == '\0' || std::string(value) == "1") return false;
  check_arg(std::string(value) == "0", kPlace, kVariable, " must be 0 or 1, got ", value);
  return true;
}

CudaOptions with_environment(CudaOptions options) {
  if (graphs_are_switched_off()) options.graphs = false;
  return options;
}

RowTensor read_rows(const OutRowTensor& rows) { return {rows.data, rows.dtype, rows.stride}; }

}  // namespace

CUDADecoder::CUDADecoder(const ModelConfig& config, const CudaOptions& options)
    : config_(checked(config)),
      options_(with_environment(checked(options))),
      stream_(stream_on(options.device)),
      products_(products_for(options, stream_->get())),
      cut_(cut_for(options)) {}

CUDADecoder::~CUDADecoder() {
  try {
    const DeviceGuard guard(options_.device);
    synchronize(stream_->get());     // what is queued reads what goes now
  } catch (const std::exception&) {  // a device that has failed: its memory goes with the process
  }
}

void CUDADecoder::set_weight(const std::string& name, const WeightView& view) {
  check_arg(max_tokens_ == 0, "CUDADecoder.set_weight", "weights cannot change after finalize, got ", name);
  const DeviceGuard guard(options_.device);
  weights_.set(name, view, *products_);
}

void CUDADecoder::finalize(std::int32_t max_tokens_per_step) {
  constexpr char kHere[] = "CUDADecoder.finalize";
  check_arg(max_tokens_ == 0, kHere, "needs to be called once, was called twice");
  check_arg(max_tokens_per_step > 0, kHere, "max_tokens_per_step must be positive, got ", max_tokens_per_step);
  const DeviceGuard guard(options_.device);
  resolved_ = weights_.resolve(config_, *products_, stream_->get());
  products_->finalize(max_tokens_per_step);
  const std::int64_t n = max_tokens_per_step, hidden = config_.hidden_size, inner = config_.intermediate_size;
  scratch_.residual = DeviceArray<float>(n * hidden);
  scratch_.wide = DeviceArray<std::uint16_t>(n * std::max<std::int64_t>(q_size() + 2 * kv_size(), 2 * inner));
  scratch_.operand = DeviceArray<std::uint16_t>(n * std::max<std::int64_t>(hidden, q_size()));
  scratch_.result = DeviceArray<std::uint16_t>(n * std::max<std::int64_t>(hidden, q_size()));
  rows_.reserve(max_tokens_per_step);
  max_tokens_ = max_tokens_per_step;
}

std::int64_t CUDADecoder::Scratch::n_bytes() const {
  return residual.n_bytes() + wide.n_bytes() + operand.n_bytes() + result.n_bytes();
}

std::int64_t CUDADecoder::workspace_bytes() const {
  std::int64_t n_bytes = scratch_.n_bytes() + graph_logits_.n_bytes() + more_logits_.n_bytes() + step_.n_bytes() +
                         graphs_.step.n_bytes() + products_->scratch_bytes() + sampler_.n_bytes() +
                         continuations_.n_bytes();
  for (const auto& [size, of_size] : graphs_.by_size) n_bytes += of_size.graph.n_bytes();
  return n_bytes;
}

void CUDADecoder::spent(StepPart part) {
  if (profile_ == nullptr) return;
  synchronize(stream_->get());
  profile_->spent(part);
}

std::int32_t CUDADecoder::step(const KvCache& cache, const StepBatch& batch) {
  constexpr char kHere[] = "CUDADecoder.step";
  check_arg(max_tokens_ > 0, kHere, "needs finalize first");
  const DeviceGuard guard(options_.device);
  if (profile_ != nullptr) {
    profile_->begin_step(static_cast<std::int32_t>(batch.tokens.size), static_cast<std::int32_t>(batch.seq_ids.size));
  }
  const DevicePages& pages = pages_of(kHere, cache);
  rows_.make(kHere, config_, cache, batch, max_tokens_, sampler_.n_drawn());
  n_logits_rows_ = 0;
  host_logits_.clear();
  host_hidden_.clear();
  const auto n_rows = static_cast<std::int64_t>(rows_.logits_tokens.size());
  const StepPlans plans = plan_step(config_, cut_, cache, rows_);
  const DecodeGraph* const graph = profile_ == nullptr ? graphs_.find(pages.id(), rows_, plans) : nullptr;
  DeviceStep& step = graph != nullptr ? graphs_.step : step_;
  step.stage(config_, cache, rows_, plans, graph != nullptr ? &graph->room : nullptr, rope_);
  step.upload(stream_->get());
  feed_drawn_tokens(batch, step);
  spent(StepPart::plan);

  running_ = &step;
  if (graph != nullptr) {
    logits_ = &graph_logits_;
    graph->graph.launch(stream_->get());
    ++n_graph_steps_;
  } else {
    LogitScratch& logits = n_rows <= graph_logits_.n_rows ? graph_logits_ : more_logits_;
    reserve_logits(n_rows, logits);
    logits_ = &logits;
    run_layers(cache, pages);
  }
  n_logits_rows_ = static_cast<std::int32_t>(n_rows);
  return n_logits_rows_;
}

const DevicePages& CUDADecoder::pages_of(const char* place, const KvCache& cache) const {
  const auto* const pages = dynamic_cast<const DevicePages*>(&cache.storage());
  check_arg(pages != nullptr && pages->stream() == stream_->get(), place,
            "the cache must have its pages on the device, of this decoder; make it with the decoder");
  const Dtype kv_dtype = cache.config().dtype;
  check_arg(kv_dtype == options_.dtype || element_bytes(kv_dtype) == 1, place, "pages must be ",
            dtype_name(options_.dtype), " like the decoder's rows, fp8 or int8, got ", dtype_name(kv_dtype));
  return *pages;
}

void CUDADecoder::feed_drawn_tokens(const StepBatch& batch, const DeviceStep& step) {
  if (std::none_of(batch.tokens.begin(), batch.tokens.end(), [](std::int32_t id) { return id < 0; })) return;
  feed_tokens(step.ids(), sampler_.drawn(), static_cast<int>(batch.tokens.size), stream_->get());
}

std::int64_t CUDADecoder::logit_bytes(std::int64_t n_rows) const {
  return n_rows * (logits_stride() * 4 + config_.hidden_size * std::int64_t{4 + 2});
}

void CUDADecoder::reserve_logits(std::int64_t n_rows, LogitScratch& logits) {
  grow(logits.residual, n_rows * config_.hidden_size, stream_->get());
  grow(logits.hidden, n_rows * config_.hidden_size, stream_->get());
  grow(logits.logits, n_rows * logits_stride(), stream_->get());
  logits.n_rows = std::max(logits.n_rows, n_rows);
}

// ---- graphs ----------------------------------------------------------------------------------------------------

void CUDADecoder::capture(const KvCache& cache, std::int32_t max_batch, std::int64_t max_bytes) {
  constexpr char kHere[] = "CUDADecoder.capture";
  check_arg(max_tokens_ > 0, kHere, "needs finalize first");
  check_arg(max_batch > 0 && max_bytes >= 0, kHere, "max_batch must be positive and max_bytes not negative, got ",
            max_batch, " and ", max_bytes);
  check_arg(profile_ == nullptr, kHere, "a profile waits for every part of a step; stop it first");
  const DeviceGuard guard(options_.device);
  const DevicePages& pages = pages_of(kHere, cache);
  rows_.clear(cache);
  n_logits_rows_ = 0;
  std::string why = options_.graphs ? why_no_room(config_, cut_) : "they are switched off";
  std::vector<std::int32_t> sizes;
  if (why.empty()) sizes = graph_sizes(std::min(max_batch, max_tokens_));
  for (drop_graphs(); !sizes.empty(); sizes.pop_back()) {
    const std::string why_not_these = record_graphs(cache, pages, sizes, max_bytes);
    if (why_not_these.empty()) break;
    why = why_not_these;
    drop_graphs();
  }
  graphs_.why_not_more = why;
}

void CUDADecoder::drop_graphs() {
  synchronize(stream_->get());  // they may be running
  graphs_ = {};
  graph_logits_ = {};
}

// Says why they cannot be, or nothing.
std::string CUDADecoder::record_graphs(const KvCache& cache, const DevicePages& pages,
                                       const std::vector<std::int32_t>& sizes, std::int64_t max_bytes) {
  const StepPlans nothing = plan_step(config_, cut_, cache, rows_);
  const auto stage = [&](const StepRoom& room) { graphs_.step.stage(config_, cache, rows_, nothing, &room, rope_); };
  // Memory of the largest first: graphs know addresses.
  const std::int32_t largest = sizes.back();
  stage(room_for(config_, cut_, cache.config(), largest));
  std::int64_t n_bytes = graphs_.step.n_upload_bytes() + logit_bytes(largest);
  if (n_bytes > max_bytes) {
    return concat("arrays for ", largest, " sequences need ", n_bytes, " bytes, may take ", max_bytes);
  }
  graphs_.step.upload(stream_->get());
  reserve_logits(largest, graph_logits_);
  graphs_.pages_id = pages.id();
  running_ = &graphs_.step;
  logits_ = &graph_logits_;
  for (const std::int32_t size : sizes) {
    DecodeGraph of_size{room_for(config_, cut_, cache.config(), size), {}};
    stage(of_size.room);
    graphs_.step.upload(stream_->get());
    run_layers(cache, pages);  // by itself first: kernels are loaded, and what is wrong with them shows
    synchronize(stream_->get());
    try {
      of_size.graph = record_graph(stream_->get(), [&] { run_layers(cache, pages); });
    } catch (const DeviceLost&) {
      throw;
    } catch (const std::runtime_error& error) {
      return concat("a step of ", size, " sequences cannot be recorded: ", error.what());
    } catch (const OutOfMemory& error) {
      return concat("a step of ", size, " sequences cannot be recorded: ", error.what());
    }
    n_bytes += of_size.graph.n_bytes();
    if (n_bytes > max_bytes) {
      return concat("graphs up to ", size, " sequences need ", n_bytes, " bytes, may take ", max_bytes);
    }
    graphs_.by_size.emplace(size, std::move(of_size));
  }
  return {};
}

std::vector<std::int32_t> CUDADecoder::graphs() const {
  std::vector<std::int32_t> sizes;
  for (const auto& [size, of_size] : graphs_.by_size) sizes.push_back(size);
  return sizes;
}

// ---- layers ----------------------------------------------------------------------------------------------------

// From ids to logits, all of it queued on the stream.
void CUDADecoder::run_layers(const KvCache& cache, const DevicePages& pages) {
  n_rows_ = running_->n_tokens();
  residual_ = scratch_.residual.data();
  has_result_ = false;
  products_->embed(*resolved_.embedding, running_->ids(), n_rows_, {residual_, Dtype::f32, config_.hidden_size});
  spent(StepPart::embed);
  for (std::int32_t i = 0; i < config_.n_layers; ++i) run_layer(i, cache, pages);
  if (n_rows_ > 0) compute_logits();
}

void CUDADecoder::run_layer(std::int32_t index, const KvCache& cache, const DevicePages& pages) {
  const auto& layer = resolved_.layers[static_cast<std::size_t>(index)];
  const std::int32_t group_number = cache.config().layer_groups[static_cast<std::size_t>(index)];
  const Dtype kv_dtype = cache.config().dtype;
  const std::int32_t page_size = cache.config().page_size, hidden = config_.hidden_size;
  const PagedLayer kv = pages.layer(index);

  norm(layer.ln1, half_rows(scratch_.operand, hidden));
  spent(StepPart::rows);
  multiply(*layer.attn_qkv, scratch_.operand, scratch_.wide);
  spent(StepPart::attn_qkv);
  store_kv(layer, kv, running_->group(group_number), kv_dtype, page_size);
  spent(StepPart::store_kv);
  RowTensor q = read_rows(half_rows(scratch_.wide, layer.attn_qkv->n));
  if (index == config_.n_layers - 1 && !rows_.all_get_logits()) {
    keep_wanted_rows();
    if (n_rows_ == 0) return;
    q = read_rows(half_rows(scratch_.result, q_size()));
  }
  attend(index, q, kv, cache.config());
  spent(StepPart::attention);
  multiply(*layer.attn_o, scratch_.operand, scratch_.result);
  has_result_ = true;
  spent(StepPart::attn_o);
  run_mlp(layer);
}

// Finishes q and k (norm, rope) and puts k and v into their pages. Attention reads all keys and values back from there.
void CUDADecoder::store_kv(const LayerWeightsOf<const GpuMatrix*>& layer, const PagedLayer& kv,
                           const DeviceGroup& group, Dtype kv_dtype, std::int32_t page_size) {
  std::uint16_t* qkv = scratch_.wide.data();
  AppendKvLaunch launch;
  launch.dtype = options_.dtype;
  launch.page_dtype = kv_dtype;
  AppendKvArgs& args = launch.args;
  args.q = qkv;
  args.key = qkv + q_size();
  args.value = qkv + q_size() + kv_size();
  args.q_token_stride = args.key_token_stride = args.value_token_stride = layer.attn_qkv->n;
  args.q_head_stride = args.key_head_stride = args.value_head_stride = config_.head_dim;
  args.slot_mapping = group.slot_mapping;
  args.k_pages = kv.k_target;
  args.v_pages = kv.v_target;
  args.n_tokens = n_rows_;
  args.n_heads = config_.n_heads;
  args.n_kv_heads = config_.n_kv_heads;
  args.head_dim = config_.head_dim;
  args.page_size = page_size;
  args.q_norm = layer.q_norm;
  args.k_norm = layer.k_norm;
  args.norm_eps = config_.norm_eps;
  args.half = static_cast<int>(config_.rope_inv_freq.size());
  args.cos = running_->cos();
  args.sin = running_->sin();
  append_kv(launch, stream_->get());
}

// From the last attention on only rows with logits go on: their queries and residual move to arrays of their own.
void CUDADecoder::keep_wanted_rows() {
  const std::int64_t n_from = n_rows_;
  const std::int32_t n_wide = q_size() + 2 * kv_size(), hidden = config_.hidden_size;
  n_rows_ = static_cast<std::int32_t>(rows_.logits_tokens.size());
  gather(read_rows(half_rows(scratch_.wide, n_wide)), n_from, q_size(), half_rows(scratch_.result, q_size()));
  gather({residual_, Dtype::f32, hidden}, n_from, hidden, {logits_->residual.data(), Dtype::f32, hidden});
  residual_ = logits_->residual.data();
}

void CUDADecoder::attend(std::int32_t index, const RowTensor& q, const PagedLayer& kv, const KvCacheConfig& cache) {
  const std::int32_t window = config_.windows[static_cast<std::size_t>(index)];
  const std::int32_t group_number = cache.layer_groups[static_cast<std::size_t>(index)];
  const DeviceGroup group = running_->group(group_number);
  PagedAttentionLaunch launch;
  launch.q_dtype = options_.dtype;
  launch.kv_dtype = cache.dtype;
  PagedAttentionArgs& args = launch.args;
  args.q = q.data;
  args.q_token_stride = q.stride;
  args.out = scratch_.operand.data();
  args.out_token_stride = q_size();
  args.q_head_stride = args.out_head_stride = config_.head_dim;
  args.k = kv.k;
  args.v = kv.v;
  args.k_scale = kv.k_scale;
  args.v_scale = kv.v_scale;
  args.block_table = group.block_table;
  args.block_table_stride = group.block_table_stride;
  args.page_size = cache.page_size;
  args.n_heads = config_.n_heads;
  args.n_kv_heads = config_.n_kv_heads;
  args.head_dim = config_.head_dim;
  args.scale = config_.attention_scale;
  if (window > 0) args.window_left = window - 1;
  if (index == config_.n_layers - 1 && !rows_.all_get_logits()) {
    running_->fill_last(launch);
  } else {
    running_->fill({group_number, window}, launch);
  }
  paged_attention(launch, stream_->get());
}

void CUDADecoder::run_mlp(const LayerWeightsOf<const GpuMatrix*>& layer) {
  const std::int32_t hidden = config_.hidden_size;
  norm(layer.ln2, half_rows(scratch_.operand, hidden));
  spent(StepPart::rows);
  const OutRowTensor wide = half_rows(scratch_.wide, layer.mlp_gate_up->n);
  products_->multiply_gated(*layer.mlp_gate_up, read_rows(half_rows(scratch_.operand, hidden)), wide, n_rows_);
  spent(StepPart::mlp_gate_up);
  products_->multiply(*layer.mlp_down, read_rows(wide), half_rows(scratch_.result, hidden), n_rows_);
  has_result_ = true;
  spent(StepPart::mlp_down);
}

void CUDADecoder::compute_logits() {
  const OutRowTensor hidden = half_rows(logits_->hidden, config_.hidden_size);
  norm(resolved_.final_norm, hidden);
  spent(StepPart::rows);
  products_->multiply(*resolved_.lm_head, read_rows(hidden), {logits_->logits.data(), Dtype::f32, logits_stride()},
                      n_rows_);
  spent(StepPart::lm_head);
}

void CUDADecoder::norm(const float* weight, const OutRowTensor& out) {
  const std::int32_t hidden = config_.hidden_size;
  const OutRowTensor residual = {residual_, Dtype::f32, hidden};
  NormLaunch launch;
  if (has_result_) {
    launch.x = read_rows(half_rows(scratch_.result, hidden));
    launch.residual = residual;
  } else {
    launch.x = read_rows(residual);
  }
  launch.weight = {weight, Dtype::f32, hidden};
  launch.out = out;
  launch.n_rows = n_rows_;
  launch.n_cols = hidden;
  launch.eps = config_.norm_eps;
  rms_norm(launch, stream_->get());
  has_result_ = false;
}

void CUDADecoder::multiply(const GpuMatrix& w, const DeviceArray<std::uint16_t>& in,
                           const DeviceArray<std::uint16_t>& out) {
  products_->multiply(w, read_rows(half_rows(in, w.k)), half_rows(out, w.n), n_rows_);
}

void CUDADecoder::gather(const RowTensor& from, std::int64_t n_from, std::int32_t n_cols, const OutRowTensor& to) {
  EmbedLaunch launch;
  launch.table = from;
  launch.ids = running_->wanted();
  launch.out = to;
  launch.n_rows = n_rows_;
  launch.vocab_size = static_cast<int>(n_from);
  launch.n_cols = n_cols;
  embed(launch, stream_->get());
}

LogitRowsTensor CUDADecoder::device_logits() const {
  return {{logits_->logits.data(), Dtype::f32, logits_stride()}, n_logits_rows_, config_.vocab_size};
}

LogitsView CUDADecoder::logits() {
  if (host_logits_.empty() && n_logits_rows_ > 0) {
    const DeviceGuard guard(options_.device);
    const std::int64_t n_cols = config_.vocab_size;
    constexpr std::int64_t kBytes = sizeof(float);
    host_logits_.resize(static_cast<std::size_t>(n_logits_rows_ * n_cols));
    copy_rows(host_logits_.data(), n_cols * kBytes, logits_->logits.data(), logits_stride() * kBytes, n_cols * kBytes,
              n_logits_rows_, stream_->get());
    synchronize(stream_->get());
  }
  return {host_logits_.data(), n_logits_rows_, config_.vocab_size};
}

const float* CUDADecoder::hidden() {
  if (host_hidden_.empty() && n_logits_rows_ > 0) {
    const DeviceGuard guard(options_.device);
    std::vector<std::uint16_t> halves(static_cast<std::size_t>(n_logits_rows_ * std::int64_t{config_.hidden_size}));
    copy_memory(halves.data(), logits_->hidden.data(), static_cast<std::int64_t>(halves.size() * sizeof(std::uint16_t)),
                stream_->get());
    synchronize(stream_->get());
    for (const std::uint16_t bits : halves) {
      host_hidden_.push_back(options_.dtype == Dtype::bf16 ? to_float(Bf16{bits}) : to_float(Fp16{bits}));
    }
  }
  return host_hidden_.data();
}

void CUDADecoder::begin_sample(const SamplingParams& params, std::int32_t n_top) {
  const DeviceGuard guard(options_.device);
  spent(StepPart::outside);
  sampler_.begin_sample(device_logits(), params, n_top, stream_->get());
  spent(StepPart::sample);
}

void CUDADecoder::end_sample(const SampleResult& result) {
  const DeviceGuard guard(options_.device);
  sampler_.end_sample(result);
}

void CUDADecoder::sample(const SamplingParams& params, std::int32_t n_top, const SampleResult& result) {
  check_arg(sampler_.n_outstanding() == 0, "CUDADecoder.sample", "end the draws first that were begun, got ",
            sampler_.n_outstanding());
  begin_sample(params, n_top);
  end_sample(result);
}

void CUDADecoder::continuations(const SamplingParams& params, const ContinuationResult& result) {
  const DeviceGuard guard(options_.device);
  spent(StepPart::outside);
  continuations_.find(device_logits(), params, result, stream_->get());
  spent(StepPart::sample);
}

void CUDADecoder::log_probs(Span<const std::int32_t> targets, std::int32_t n_top, const SampleResult& result) {
  const DeviceGuard guard(options_.device);
  sampler_.log_probs(device_logits(), targets, n_top, result, stream_->get());
}

std::vector<StepRecord> CUDADecoder::stop_profile() {
  check_arg(profile_ != nullptr, "CUDADecoder.stop_profile", "needs start_profile first");
  std::vector<StepRecord> steps = std::move(profile_->steps);
  profile_.reset();
  return steps;
}

}  // namespace gpu
}  // namespace llm_decoder
