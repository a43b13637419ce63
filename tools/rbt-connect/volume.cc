#include "tools/rbt-connect/volume.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "common/check.h"
#include "initiator/volume.h"

namespace rbt::tools {

namespace {

constexpr std::uint32_t kBuffersMax = 16;
// Longest wait for a single command before somebody looks whether it is still wanted (Ctrl-C).
constexpr Duration kMoment = std::chrono::milliseconds(50);

class VolumeEndpoint final : public Endpoint {
 public:
  VolumeEndpoint(std::string name, const Clock& clock, std::unique_ptr<initiator::Volume> volume,
                 const Interrupt& interrupt)
      : name_(std::move(name)),
        clock_(clock),
        volume_(std::move(volume)),
        disk_(volume_->disk()),
        size_(disk_.size().value()),
        interrupt_(interrupt) {}

  const std::string& name() const noexcept override { return name_; }
  std::optional<std::uint64_t> size() const noexcept override { return size_; }
  std::uint32_t block_size() const noexcept override { return disk_.block_size(); }

  void read(Transfer& transfer) override {
    const std::uint64_t left = size_ - std::min(size_, transfer.offset);
    transfer.data = transfer.data.first(std::min<std::uint64_t>(transfer.data.size(), left));
    start(transfer, initiator::Operation::read);
  }
  void write(Transfer& transfer) override { start(transfer, initiator::Operation::write); }

  Result<void> begin_writing(std::optional<std::uint64_t> size) override {
    if (disk_.read_only) return failure(ErrorKind::permission, name_ + ": the namespace is write-protected");
    if (size && *size > size_)
      return failure(ErrorKind::invalid_argument,
                     fmt::format("{} has {} bytes, {} are to be written: too small", name_, size_, *size));
    return {};
  }

  Result<void> zero(std::uint64_t offset, std::uint64_t length) override {
    const Lba first(offset >> disk_.block_shift.value());
    const Blocks count = disk_.block_shift.blocks(Bytes(length));
    if (disk_.abilities.write_zeroes)
      return command("zeroing", [&](initiator::Request& request) {
        return volume_->write_zeroes(request, {first, count}, nvme::Deallocate::yes);
      });
    // An old target: zeroes over the wire.
    const std::vector<std::byte> zeroes(std::min<std::uint64_t>(length, kMiB));
    for (std::uint64_t done = 0; done < length;) {
      const std::uint64_t piece = std::min<std::uint64_t>(length - done, zeroes.size());
      const iovec data{const_cast<std::byte*>(zeroes.data()), piece};  // a write does not change it
      auto written = command("zeroing", [&](initiator::Request& request) {
        return volume_->write(request, first + disk_.block_shift.blocks(Bytes(done)), {&data, 1});
      });
      if (!written) return written;
      done += piece;
    }
    return {};
  }

  Result<void> finish_writing(std::uint64_t /*end*/) override {
    auto flushed = command("flushing", [&](initiator::Request& request) { return volume_->flush(request); });
    const auto statistics = volume_->statistics();
    if (flushed && statistics.losses != 0 && statistics.memory == initiator::MemoryKind::foreign)
      return failure(ErrorKind::io,
                     fmt::format("{}: its target was lost while it was written to, and does not tell whether it has "
                                 "forgotten anything since: copy again",
                                 name_));
    return flushed;
  }

  bool due() const noexcept override { return !finished_.empty() || volume_->progress_due(); }

  void progress() override {
    volume_->progress();
    std::deque<Slot*> batch;
    batch.swap(finished_);
    for (Slot* const slot : batch) {
      Transfer& transfer = *slot->transfer;
      if (slot->request.outcome != initiator::Outcome::success) transfer.error = explain("transfer", slot->request);
      idle_.push_back(slot);
      transfer.done(transfer);
    }
  }

  std::optional<Error> lost() const override {
    if (volume_->state() != initiator::VolumeState::failed) return {};
    return Error(*volume_->failure()).within(name_);
  }

  // With a path, what is under way ends by itself.
  void give_up() override {
    if (volume_->state() != initiator::VolumeState::live) volume_->close();
  }

  std::span<std::byte> buffer(std::size_t size) override { return volume_->buffers()->allocate(size); }

 private:
  struct Slot {
    initiator::Request request;
    iovec data{};
    Transfer* transfer = nullptr;
    VolumeEndpoint* volume = nullptr;
  };

  void start(Transfer& transfer, initiator::Operation operation) {
    if (idle_.empty()) {
      slots_.emplace_back();
      idle_.push_back(&slots_.back());
    }
    Slot& slot = *idle_.back();
    idle_.pop_back();
    slot.transfer = &transfer;
    slot.volume = this;
    slot.data = {transfer.data.data(), transfer.data.size()};
    slot.request.context = &slot;
    slot.request.done = [](initiator::Request& request) {
      auto& mine = *static_cast<Slot*>(request.context);
      mine.volume->finished_.push_back(&mine);
    };
    slot.request.operation = operation;
    slot.request.range = {Lba(transfer.offset >> disk_.block_shift.value()),
                          disk_.block_shift.blocks(Bytes(transfer.data.size()))};
    slot.request.data = {&slot.data, 1};
    submit(slot);
  }

  void submit(Slot& slot) {
    if (slot.transfer->data.empty()) {  // the end of the namespace
      slot.request.outcome = initiator::Outcome::success;
      finished_.push_back(&slot);
      return;
    }
    switch (volume_->submit(slot.request)) {
      case initiator::Submitted::accepted: return;
      case initiator::Submitted::full:
        check(false, "there are no more transfers than the volume takes requests");
        break;
      case initiator::Submitted::refused: break;
      case initiator::Submitted::dead: slot.request.outcome = initiator::Outcome::disconnected; break;
    }
    finished_.push_back(&slot);
  }

  Error explain(std::string_view what, const initiator::Request& request) const {
    if (request.outcome == initiator::Outcome::failed)
      return {ErrorKind::io, fmt::format("{}: {} at LBA {}: {}", name_, what, request.range.first.value(),
                                         nvme::describe(request.status))};
    if (auto why = lost()) return std::move(*why);
    return {ErrorKind::io, fmt::format("{}: {} at LBA {}: {}", name_, what, request.range.first.value(),
                                       initiator::name(request.outcome))};
  }

  template <typename Submit>
  Result<void> command(std::string_view what, Submit submit_it) {
    initiator::Request request;
    if (submit_it(request) != initiator::Submitted::accepted) return failure(explain(what, request));
    while (!volume_->run_until([&] { return !request.in_flight(); }, clock_.now() + kMoment))
      if (interrupt_.raised()) give_up();
    if (request.outcome != initiator::Outcome::success) return failure(explain(what, request));
    return {};
  }

  std::string name_;
  const Clock& clock_;
  std::unique_ptr<initiator::Volume> volume_;
  const initiator::Namespace& disk_;
  const std::uint64_t
      size_;  // as it was: of one that shrinks meanwhile not less is copied, but what is gone is an error
  const Interrupt& interrupt_;
  std::deque<Slot> slots_;
  std::vector<Slot*> idle_;
  std::deque<Slot*> finished_;  // their transfer's `done` is due
};

}  // namespace

Result<std::unique_ptr<Endpoint>> open_volume(const initiator::Environment& environment, const Uri& uri,
                                              transport::Reactor& reactor, const VolumeOptions& options,
                                              const Interrupt& interrupt) {
  initiator::VolumeOptions wanted;
  wanted.session.host = options.host;
  wanted.session.connect_timeout = options.connect_timeout;
  wanted.queue = {.depth = 2 * kBuffersMax, .buffers = Bytes(kBuffersMax * transport::BufferPool::kBlockMax)};
  wanted.requests = 2 * kBuffersMax;
  wanted.on_loss = options.on_loss;
  // The volume's log tells of the loss where people see it.
  wanted.on_state = [&logger = environment.logger, name = uri.to_string(), lost = false](initiator::VolumeState state,
                                                                                         const Error* /*why*/) mutable {
    if (state == initiator::VolumeState::live && std::exchange(lost, false)) logger.warning("{}: live again", name);
    if (state == initiator::VolumeState::lost) lost = true;
  };
  auto volume = initiator::Volume::open(environment, {&uri, 1}, reactor, wanted);
  if (!volume) return failure(std::move(volume.error()));
  return std::make_unique<VolumeEndpoint>(uri.to_string(), environment.clock, std::move(*volume), interrupt);
}

}  // namespace rbt::tools
