// A plan whose arrays are on the device: what was planned is what a launch finds there, and it stays in its place.
#include <cstring>
#include <vector>

#include "check.h"
#include "device_plan.h"

namespace {

using namespace llm_decoder;
using namespace llm_decoder::gpu;

constexpr int kHeadDim = 64;

PlanRequest request_of(const std::vector<int>& seq_lens, const std::vector<int>& cu_seqlens_q) {
  PlanRequest request;
  request.seq_lens = seq_lens;
  request.cu_seqlens_q = cu_seqlens_q;
  request.n_heads = 8;
  request.n_kv_heads = 2;
  request.n_blocks = 16;
  request.window_left = 900;
  return request;
}

template <class T>
bool same(const T* at, const std::vector<T>& want) {
  return want.empty() || std::memcmp(at, want.data(), want.size() * sizeof(T)) == 0;
}

TEST(a_launch_finds_what_was_planned) {
  const std::vector<int> lens = {2000, 90, 33}, cu = {0, 1, 2, 35};
  PlanRequest request = request_of(lens, cu);
  request.wide_rows = 2 * kWideRows;
  DevicePlan plan;
  plan.update(request, kHeadDim, nullptr);
  const PagedAttentionPlan want = plan_paged_attention(request);
  CHECK(want.n_all_states > 0);
  CHECK(!want.wide.empty());
  PagedAttentionLaunch launch;
  plan.fill(launch);
  CHECK_EQ(plan.n_tokens(), 35);
  CHECK_EQ(launch.n_narrow, static_cast<int>(want.narrow.size()));
  CHECK_EQ(launch.n_wide, static_cast<int>(want.wide.size()));
  CHECK_EQ(launch.wide_rows, 2 * kWideRows);
  CHECK_EQ(launch.n_merged_tokens, static_cast<int>(want.merged_tokens.size()));
  CHECK(same(launch.narrow, want.narrow));
  CHECK(same(launch.wide, want.wide));
  CHECK(same(launch.merged_tokens, want.merged_tokens));
  CHECK(same(launch.n_states, want.n_states));
  CHECK(same(launch.args.state_begin, want.state_begin));
  CHECK_EQ(launch.args.state_lse - launch.args.states, std::ptrdiff_t{want.n_all_states} * 8 * kHeadDim);
  CHECK_EQ(launch.args.n_heads, 8);
  CHECK_EQ(launch.args.n_kv_heads, 2);
  CHECK_EQ(launch.args.head_dim, kHeadDim);
  CHECK_EQ(launch.args.window_left, 900);
}

TEST(an_update_that_fits_leaves_the_arrays_where_they_are) {
  DevicePlan plan;
  const std::vector<int> lens = {1500, 900}, cu = {0, 1, 2};
  plan.update(request_of(lens, cu), kHeadDim, nullptr);
  PagedAttentionLaunch first, second, third;
  plan.fill(first);
  const std::vector<int> shorter = {700, 80};
  plan.update(request_of(shorter, cu), kHeadDim, nullptr);
  plan.fill(second);
  CHECK(first.narrow == second.narrow);
  CHECK(first.args.states == second.args.states);
  CHECK(same(second.narrow, plan_paged_attention(request_of(shorter, cu)).narrow));
  const std::vector<int> many_lens(400, 100);
  std::vector<int> many_cu;
  for (int i = 0; i <= 400; ++i) many_cu.push_back(i);
  plan.update(request_of(many_lens, many_cu), kHeadDim, nullptr);
  plan.fill(third);
  CHECK(same(third.narrow, plan_paged_attention(request_of(many_lens, many_cu)).narrow));
}

TEST(tokens_of_no_sequence_are_planned_without_keys) {
  DevicePlan plan;
  const std::vector<int> lens = {40}, cu = {0, 2};
  PlanRequest request = request_of(lens, cu);
  request.n_tokens = 5;
  plan.update(request, kHeadDim, nullptr);
  CHECK_EQ(plan.n_tokens(), 5);
  const PagedAttentionPlan made = plan_paged_attention(request);
  CHECK_EQ(made.state_begin.size(), std::size_t{5});
  const PagedAttentionItem& last = made.narrow.back();
  CHECK_EQ(last.sequence, kNoSequence);
  CHECK_EQ(last.token_begin, 2);
  CHECK_EQ(last.n_rows, 3 * 4);
  CHECK_EQ(last.key_end - last.key_begin, 0);
}

TEST(a_token_behind_a_shared_prefix_knows_how_far) {
  DevicePlan plan;
  const std::vector<int> lens = {100, 90, 40}, cu = {0, 2, 3, 4};
  PlanRequest request = request_of(lens, cu);
  request.window_left = kUnbounded;
  PagedAttentionLaunch launch;
  plan.update(request, kHeadDim, nullptr);
  plan.fill(launch);
  CHECK(launch.prefix_states == nullptr);
  const SharedPrefix prefix{0, 2, 64};
  request.prefixes = Span<const SharedPrefix>(&prefix, 1);
  plan.update(request, kHeadDim, nullptr);
  plan.fill(launch);
  const int n_between[] = {34, 35, 25, 0};
  for (int token = 0; token < 4; ++token) {
    CHECK_EQ(launch.prefix_states[token].n, token < 3 ? 1 : 0);
    CHECK_EQ(launch.prefix_states[token].n_between, n_between[token]);
  }
}

// ---- room ------------------------------------------------------------------------------------------------------

TEST(what_a_plan_leaves_of_its_room_does_nothing) {
  const std::vector<int> lens = {2000, 90}, cu = {0, 1, 2};
  const PagedAttentionPlan made = plan_paged_attention(request_of(lens, cu));
  PlanRoom room = room_of(made);
  CHECK(room.holds(made));
  CHECK_EQ(room.n_merged_tokens, 1);
  room.n_tokens = 5;
  room.n_narrow += 3;
  room.n_merged_tokens = 4;
  room.n_states = 40;
  StagedArrays arrays;
  StagedPlan plan;
  arrays.begin();
  plan.stage(made, room, arrays);
  arrays.upload(nullptr);
  PagedAttentionLaunch launch;
  launch.args.n_heads = 8;
  launch.args.head_dim = kHeadDim;
  const DeviceArray<float> states(room.n_state_floats(8, kHeadDim));
  plan.fill(arrays, states.data(), launch);
  CHECK(same(launch.narrow, made.narrow));
  CHECK_EQ(launch.n_narrow, static_cast<int>(made.narrow.size()) + 3);
  for (int i = launch.n_narrow - 3; i < launch.n_narrow; ++i) CHECK_EQ(launch.narrow[i].n_rows, 0);
  CHECK_EQ(launch.n_merged_tokens, 4);
  CHECK_EQ(launch.merged_tokens[0], 0);
  for (int i = 1; i < 4; ++i) CHECK_EQ(launch.merged_tokens[i], kNoToken);
  for (int i = 2; i < 5; ++i) CHECK_EQ(launch.args.state_begin[i], kNoState);
  CHECK_EQ(launch.args.state_lse - launch.args.states, std::ptrdiff_t{40} * 8 * kHeadDim);
  CHECK(launch.args.state_lse + 40 * 8 == states.data() + states.size());
}

TEST(a_plan_that_needs_more_than_its_room_is_refused) {
  const std::vector<int> lens = {2000, 90}, cu = {0, 1, 2};
  const PagedAttentionPlan made = plan_paged_attention(request_of(lens, cu));
  StagedArrays arrays;
  StagedPlan plan;
  arrays.begin();
  const auto refuses = [&](void (*take)(PlanRoom&)) {
    PlanRoom room = room_of(made);
    take(room);
    CHECK(!room.holds(made));
    CHECK_THROWS(std::logic_error, "does not fit its room", plan.stage(made, room, arrays));
  };
  refuses([](PlanRoom& room) { --room.n_tokens; });
  refuses([](PlanRoom& room) { --room.n_narrow; });
  refuses([](PlanRoom& room) { --room.n_merged_tokens; });
  refuses([](PlanRoom& room) { --room.n_states; });
}

TEST(a_plan_for_no_tokens_is_empty) {
  DevicePlan plan;
  const std::vector<int> lens = {5}, cu = {0, 0};
  plan.update(request_of(lens, cu), kHeadDim, nullptr);
  PagedAttentionLaunch launch;
  plan.fill(launch);
  CHECK_EQ(launch.n_narrow + launch.n_wide + launch.n_merged_tokens + plan.n_tokens(), 0);
}

}  // namespace
