#include "tools/rbt-connect/volume.h"

#include <fmt/format.h>
#include <sys/epoll.h>

#include <algorithm>
#include <deque>
#include <optional>
#include <vector>

namespace rbt::tools {

namespace {

constexpr std::uint32_t kBuffersMax = 16;
// Longest wait for something to happen before the copy looks around (progress bar, Ctrl-C).
constexpr Duration kMoment = std::chrono::milliseconds(50);

class Volume final : public Endpoint {
 public:
  Volume(std::string name, const Clock& clock, std::unique_ptr<transport::Reactor> reactor,
         std::unique_ptr<initiator::Session> session, std::unique_ptr<initiator::QueuePair> queue,
         const initiator::Namespace& disk)
      : name_(std::move(name)),
        clock_(clock),
        reactor_(std::move(reactor)),
        session_(std::move(session)),
        queue_(std::move(queue)),
        disk_(disk) {}

  const std::string& name() const noexcept override { return name_; }
  std::optional<std::uint64_t> size() const noexcept override { return disk_.size().value(); }
  std::uint32_t block_size() const noexcept override { return disk_.block_size(); }

  void read(Transfer& transfer) override {
    const std::uint64_t left = disk_.size().value() - std::min(disk_.size().value(), transfer.offset);
    transfer.data = transfer.data.first(std::min<std::uint64_t>(transfer.data.size(), left));
    start(transfer, initiator::Operation::read);
  }
  void write(Transfer& transfer) override { start(transfer, initiator::Operation::write); }

  Result<void> begin_writing(std::optional<std::uint64_t> size) override {
    if (disk_.read_only) return failure(ErrorKind::permission, name_ + ": the namespace is write-protected");
    if (size && *size > disk_.size().value())
      return failure(ErrorKind::invalid_argument, fmt::format("{} has {} bytes, {} are to be written: too small", name_,
                                                              disk_.size().value(), *size));
    return {};
  }

  Result<void> zero(std::uint64_t offset, std::uint64_t length) override {
    const Lba first(offset >> disk_.block_shift.value());
    const Blocks count = disk_.block_shift.blocks(Bytes(length));
    if (disk_.abilities.write_zeroes)
      return command("zeroing", [&](initiator::Request& request) {
        return queue_->write_zeroes(request, disk_, {first, count}, nvme::Deallocate::yes);
      });
    // An old target: zeroes over the wire.
    const std::vector<std::byte> zeroes(std::min<std::uint64_t>(length, kMiB));
    for (std::uint64_t done = 0; done < length;) {
      const std::uint64_t piece = std::min<std::uint64_t>(length - done, zeroes.size());
      const iovec data{const_cast<std::byte*>(zeroes.data()), piece};  // a write does not change it
      auto written = command("zeroing", [&](initiator::Request& request) {
        return queue_->write(request, disk_, first + disk_.block_shift.blocks(Bytes(done)), {&data, 1});
      });
      if (!written) return written;
      done += piece;
    }
    return {};
  }

  Result<void> finish_writing(std::uint64_t /*end*/) override {
    return command("flushing", [&](initiator::Request& request) { return queue_->flush(request, disk_); });
  }

  void progress(int also) override {
    bool other = false;
    // A file among the pipes' descriptors cannot be watched, and need not be: it is always readable.
    if (also >= 0 && !reactor_->watch(also, EPOLLIN, [&other](std::uint32_t) { other = true; })) other = true;
    const auto something = [&] {
      return other || !finished_.empty() || (!queue_->live() && idle_.size() == slots_.size());
    };
    (void)reactor_->run_until(something, clock_.now() + kMoment);
    if (also >= 0) reactor_->unwatch(also);
    std::deque<Slot*> batch;
    batch.swap(finished_);
    for (Slot* const slot : batch) {
      Transfer& transfer = *slot->transfer;
      if (slot->request.outcome != initiator::Outcome::success) transfer.error = explain("transfer", slot->request);
      idle_.push_back(slot);
      retry_waiting();
      transfer.done(transfer);
    }
  }

  std::optional<Error> lost() const override {
    if (queue_->failure() == nullptr) return {};
    return Error(*queue_->failure()).within(name_);
  }

  std::span<std::byte> buffer(std::size_t size) override { return queue_->buffers()->allocate(size); }

 private:
  struct Slot {
    initiator::Request request;
    iovec data{};
    Transfer* transfer = nullptr;
    Volume* volume = nullptr;
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
    slot.request.target = &disk_;
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
    switch (queue_->submit(slot.request)) {
      case initiator::Submitted::accepted: return;
      case initiator::Submitted::full: waiting_.push_back(&slot); return;
      case initiator::Submitted::refused: break;
      case initiator::Submitted::dead: slot.request.outcome = initiator::Outcome::disconnected; break;
    }
    finished_.push_back(&slot);
  }

  void retry_waiting() {
    if (waiting_.empty()) return;
    Slot& slot = *waiting_.front();
    waiting_.pop_front();
    submit(slot);
  }

  Error explain(std::string_view what, const initiator::Request& request) const {
    if (request.outcome == initiator::Outcome::failed)
      return {ErrorKind::io, fmt::format("{}: {} at LBA {}: {}", name_, what, request.range.first.value(),
                                         nvme::describe(request.status))};
    if (queue_->failure() != nullptr) return Error(*queue_->failure()).within(name_);
    return {ErrorKind::io, fmt::format("{}: {} at LBA {}: {}", name_, what, request.range.first.value(),
                                       initiator::name(request.outcome))};
  }

  template <typename Submit>
  Result<void> command(std::string_view what, Submit submit_it) {
    initiator::Request request;
    while (true) {
      const auto submitted = submit_it(request);
      if (submitted == initiator::Submitted::accepted) break;
      if (submitted != initiator::Submitted::full) return failure(explain(what, request));
      reactor_->turn();
    }
    // The queue pair ends every command in its time; this bound only guards against a defect.
    if (!queue_->wait(request, clock_.now() + std::chrono::hours(1)))
      return failure(ErrorKind::timed_out, fmt::format("{}: {} did not finish within an hour", name_, what));
    if (request.outcome != initiator::Outcome::success) return failure(explain(what, request));
    return {};
  }

  std::string name_;
  const Clock& clock_;
  std::unique_ptr<transport::Reactor> reactor_;
  std::unique_ptr<initiator::Session> session_;
  std::unique_ptr<initiator::QueuePair> queue_;  // before session and reactor in destruction
  const initiator::Namespace& disk_;
  std::deque<Slot> slots_;
  std::vector<Slot*> idle_;
  std::deque<Slot*> waiting_;   // the queue was full
  std::deque<Slot*> finished_;  // their transfer's `done` is due
};

}  // namespace

Result<std::unique_ptr<Endpoint>> open_volume(const initiator::Environment& environment, const Uri& uri,
                                              const VolumeOptions& options) {
  auto reactor = transport::Reactor::create(environment.clock, environment.logger);
  if (!reactor) return failure(std::move(reactor.error()));
  auto session = initiator::Session::connect(environment, uri, options.session);
  if (!session) return failure(std::move(session.error()));
  auto disk = (*session)->find(uri.nsid);
  if (!disk) return failure(std::move(disk.error()));
  auto queue = (*session)->open_queue_pair(
      **reactor, {.depth = options.depth, .buffers = Bytes(kBuffersMax * transport::BufferPool::kBlockMax)});
  if (!queue) return failure(std::move(queue.error()));
  return std::make_unique<Volume>(uri.to_string(), environment.clock, std::move(*reactor), std::move(*session),
                                  std::move(*queue), **disk);
}

}  // namespace rbt::tools
