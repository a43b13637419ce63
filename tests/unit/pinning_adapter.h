#pragma once
// An RDMA adapter's way with memory, without one: io_uring's registered buffers pin pages just as a memory region does,
// and go on moving data to and from them when the mapping has long got others.

#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <memory>

#include <string>

#include "tests/unit/coherence_table.h"

namespace rbt::test {

class PinnedRegion final : public transport::MemoryRegion {
 public:
  PinnedRegion(const transport::MemorySpan& memory, std::uint32_t key, std::atomic<PinnedRegion*>& newest)
      : MemoryRegion(memory, key, key), newest_(newest) {}
  ~PinnedRegion() override {
    PinnedRegion* self = this;
    newest_.compare_exchange_strong(self, nullptr);
    if (open_) ::io_uring_queue_exit(&ring_);
    if (file_ >= 0) ::close(file_);
  }
  /// 0, or an errno: EFAULT where nothing is mapped.
  [[nodiscard]] int pin() {
    file_ = ::memfd_create("adapter", MFD_CLOEXEC);
    if (const int error = ::io_uring_queue_init(4, &ring_, 0); error < 0) return -error;
    open_ = true;
    const iovec buffer{span_.data, span_.size};
    if (const int error = ::io_uring_register_buffers(&ring_, &buffer, 1); error < 0) return -error;
    newest_ = this;
    return 0;
  }
  /// The adapter writes into memory (an RDMA READ's response arrives). True: it completed with success.
  [[nodiscard]] bool write(std::size_t offset, const std::string& text) {
    if (::pwrite(file_, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) return false;
    return run(
        [&](io_uring_sqe* sqe) {
          ::io_uring_prep_read_fixed(sqe, file_, span_.data + offset, static_cast<unsigned>(text.size()), 0, 0);
        },
        text.size());
  }
  /// The adapter reads memory (an RDMA WRITE goes out). Empty: it did not complete with success.
  [[nodiscard]] std::string read(std::size_t offset, std::size_t size) {
    std::string text(size, '\0');
    const bool done = run(
        [&](io_uring_sqe* sqe) {
          ::io_uring_prep_write_fixed(sqe, file_, span_.data + offset, static_cast<unsigned>(size), 0, 0);
        },
        size);
    if (!done || ::pread(file_, text.data(), size, 0) != static_cast<ssize_t>(size)) return {};
    return text;
  }

 private:
  template <typename Prepare>
  bool run(Prepare&& prepare, std::size_t expected) {
    prepare(::io_uring_get_sqe(&ring_));
    io_uring_cqe* cqe = nullptr;
    if (::io_uring_submit_and_wait(&ring_, 1) != 1 || ::io_uring_peek_cqe(&ring_, &cqe) != 0) return false;
    const bool done = cqe->res == static_cast<int>(expected);
    ::io_uring_cqe_seen(&ring_, cqe);
    return done;
  }
  std::atomic<PinnedRegion*>& newest_;  // the domain's
  io_uring ring_{};
  bool open_ = false;
  int file_ = -1;
};

/// One memory at a time.
class PinningDomain final : public AdapterDomain {
 public:
  Result<std::unique_ptr<transport::MemoryRegion>> register_memory(const transport::MemorySpan& memory,
                                                                   transport::RemoteAccess) override {
    auto region = std::make_unique<PinnedRegion>(memory, ++key_, newest_);
    if (const int error = region->pin(); error != 0) return errno_failure(error, "pinning memory");
    return region;
  }
  std::string_view name() const noexcept override { return "pinning"; }
  [[nodiscard]] bool write(std::size_t offset, const std::string& text) override {
    PinnedRegion* const region = newest_;
    return region != nullptr && region->write(offset, text);
  }
  [[nodiscard]] std::string read(std::size_t offset, std::size_t size) override {
    PinnedRegion* const region = newest_;
    return region == nullptr ? std::string() : region->read(offset, size);
  }

 private:
  std::uint32_t key_ = 0;
  std::atomic<PinnedRegion*> newest_{nullptr};
};

}  // namespace rbt::test
