#pragma once
// A device that moves data through the newest registration: peers' RDMA WRITEs and READs, over a pair of queue pairs that is
// connected to itself.

#include <infiniband/verbs.h>

#include <array>
#include <catch2/catch.hpp>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>

#include "tests/unit/coherence_table.h"

namespace rbt::test {

class VerbsRegion final : public transport::MemoryRegion {
 public:
  VerbsRegion(const transport::MemorySpan& memory, ibv_mr* region)
      : MemoryRegion(memory, region->lkey, region->rkey), region_(region) {}
  ~VerbsRegion() override { CHECK(ibv_dereg_mr(region_) == 0); }

 private:
  ibv_mr* region_;
};

/// The first device, and two queue pairs on it. A protection error costs both: then they are made anew.
class LoopbackDomain final : public AdapterDomain {
 public:
  LoopbackDomain() {
    int count = 0;
    ibv_device** const devices = ibv_get_device_list(&count);
    REQUIRE(count > 0);
    context_ = ibv_open_device(devices[0]);
    ibv_free_device_list(devices);
    REQUIRE(context_ != nullptr);
    domain_ = ibv_alloc_pd(context_);
    completions_ = ibv_create_cq(context_, 16, nullptr, nullptr, 0);
    REQUIRE((domain_ != nullptr && completions_ != nullptr));
    const int local = IBV_ACCESS_LOCAL_WRITE;  // an int: ibv_reg_mr is a macro, and clang minds its mixed enumerations
    scratch_region_ = ibv_reg_mr(domain_, scratch_.data(), scratch_.size(), local);
    REQUIRE(scratch_region_ != nullptr);
    find_gid();
    connect();
  }
  ~LoopbackDomain() override {
    for (ibv_qp* pair : pairs_)
      ibv_destroy_qp(pair);
    ibv_dereg_mr(scratch_region_);
    ibv_destroy_cq(completions_);
    ibv_dealloc_pd(domain_);
    ibv_close_device(context_);
  }
  Result<std::unique_ptr<transport::MemoryRegion>> register_memory(const transport::MemorySpan& memory,
                                                                   transport::RemoteAccess wanted) override {
    const int write = wanted == transport::RemoteAccess::read ? 0 : IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
    const int access = IBV_ACCESS_REMOTE_READ | write;
    ibv_mr* const region = ibv_reg_mr(domain_, memory.data, memory.size, access);
    if (region == nullptr) return errno_failure(errno, "ibv_reg_mr");
    memory_ = memory.data;
    rkey_ = region->rkey;
    return std::make_unique<VerbsRegion>(memory, region);
  }
  std::string_view name() const noexcept override { return "verbs"; }
  [[nodiscard]] bool write(std::size_t offset, const std::string& text) override {
    std::memcpy(scratch_.data(), text.data(), text.size());
    return move(IBV_WR_RDMA_WRITE, offset, text.size());
  }
  [[nodiscard]] std::string read(std::size_t offset, std::size_t size) override {
    return move(IBV_WR_RDMA_READ, offset, size) ? std::string(scratch_.data(), size) : std::string();
  }

 private:
  void find_gid() {
    ibv_port_attr port{};
    REQUIRE(ibv_query_port(context_, 1, &port) == 0);
    mtu_ = port.active_mtu;
    for (gid_index_ = 0; gid_index_ < port.gid_tbl_len; ++gid_index_) {  // the IPv4 one: ::ffff:a.b.c.d
      if (ibv_query_gid(context_, 1, gid_index_, &gid_) == 0 && gid_.raw[10] == 0xff && gid_.raw[11] == 0xff) return;
    }
    FAIL("the device has no IPv4 address");
  }
  void connect() {
    for (ibv_qp*& pair : pairs_) {
      if (pair != nullptr) ibv_destroy_qp(pair);
      ibv_qp_init_attr wish{};
      wish.send_cq = wish.recv_cq = completions_;
      wish.qp_type = IBV_QPT_RC;
      wish.cap = {4, 4, 1, 1, 0};
      pair = ibv_create_qp(domain_, &wish);
      REQUIRE(pair != nullptr);
    }
    for (std::size_t i = 0; i < 2; ++i)
      raise(pairs_[i], pairs_[1 - i]->qp_num);
  }
  void raise(ibv_qp* pair, std::uint32_t peer) {
    ibv_qp_attr to{};
    to.qp_state = IBV_QPS_INIT;
    to.port_num = 1;
    to.qp_access_flags = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
    REQUIRE(ibv_modify_qp(pair, &to, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) == 0);
    to = {};
    to.qp_state = IBV_QPS_RTR;
    to.path_mtu = mtu_;
    to.dest_qp_num = peer;
    to.max_dest_rd_atomic = 1;
    to.min_rnr_timer = 12;
    to.ah_attr.is_global = 1;
    to.ah_attr.grh.dgid = gid_;
    to.ah_attr.grh.sgid_index = static_cast<std::uint8_t>(gid_index_);
    to.ah_attr.grh.hop_limit = 64;
    to.ah_attr.port_num = 1;
    REQUIRE(ibv_modify_qp(pair, &to,
                          IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                              IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) == 0);
    to = {};
    to.qp_state = IBV_QPS_RTS;
    to.timeout = 14;
    to.retry_cnt = 6;
    to.rnr_retry = 6;
    to.max_rd_atomic = 1;
    REQUIRE(ibv_modify_qp(pair, &to,
                          IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                              IBV_QP_MAX_QP_RD_ATOMIC) == 0);
  }
  /// True: the completion says success.
  bool move(ibv_wr_opcode opcode, std::size_t offset, std::size_t size) {
    ibv_sge local{reinterpret_cast<std::uint64_t>(scratch_.data()), static_cast<std::uint32_t>(size),
                  scratch_region_->lkey};
    ibv_send_wr request{}, *bad = nullptr;
    request.sg_list = &local;
    request.num_sge = 1;
    request.opcode = opcode;
    request.send_flags = IBV_SEND_SIGNALED;
    request.wr.rdma.remote_addr = reinterpret_cast<std::uint64_t>(memory_ + offset);
    request.wr.rdma.rkey = rkey_;
    REQUIRE(ibv_post_send(pairs_[0], &request, &bad) == 0);
    ibv_wc completion{};
    REQUIRE(within(std::chrono::seconds(20), [&] { return ibv_poll_cq(completions_, 1, &completion) == 1; }));
    if (completion.status == IBV_WC_SUCCESS) return true;
    CHECK(completion.status == IBV_WC_REM_ACCESS_ERR);  // an old key; anything else would be a failure of the test
    connect();
    return false;
  }

  ibv_context* context_ = nullptr;
  ibv_pd* domain_ = nullptr;
  ibv_cq* completions_ = nullptr;
  ibv_mr* scratch_region_ = nullptr;
  std::array<char, 4096> scratch_{};
  std::array<ibv_qp*, 2> pairs_{};
  ibv_gid gid_{};
  int gid_index_ = 0;
  ibv_mtu mtu_ = IBV_MTU_1024;
  std::byte* memory_ = nullptr;
  std::uint32_t rkey_ = 0;
};

}  // namespace rbt::test
