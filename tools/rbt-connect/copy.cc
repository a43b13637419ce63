#include "tools/rbt-connect/copy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <vector>

#include "tools/program/crc32c.h"
#include "tools/program/progress.h"

namespace rbt::tools {

namespace {

// Longest wait for something to happen before the copy looks around (progress bar, Ctrl-C).
constexpr Duration kMoment = std::chrono::milliseconds(50);

bool all_zero(std::span<const std::byte> data) {
  return data.empty() || (data[0] == std::byte{0} && std::memcmp(data.data(), data.data() + 1, data.size() - 1) == 0);
}

std::uint32_t checksum(std::span<const std::byte> data) {
  Crc32c crc;
  crc.process_bytes(data.data(), data.size());
  return crc.checksum();
}

class Copy {
 public:
  Copy(Endpoint& source, Endpoint& destination, const CopyOptions& options, transport::Reactor& reactor,
       const Interrupt& interrupt)
      : source_(source),
        destination_(destination),
        options_(options),
        interrupt_(interrupt),
        progress_(reactor.clock(), source.size()),
        reactor_(reactor) {}

  Result<CopyResult> run();

 private:
  struct Slot {
    Transfer transfer;
    std::span<std::byte> buffer;
    std::vector<std::byte> own;  // if neither endpoint had a buffer
    Copy* copy = nullptr;
  };

  void make_slots();
  Result<void> transfer_all();
  void read_next(Slot& slot);
  void skip_hole();
  void on_read(Slot& slot);
  void write_in_order(Slot& slot);
  void write(Slot& slot);
  void on_written(Slot& slot);
  Result<void> verify_all();
  void verify_next(Slot& slot);
  void on_verified(Slot& slot);
  void zero(std::uint64_t offset, std::uint64_t length);
  void finish(Slot& slot) { idle_.push_back(&slot); }
  void fail(Error error) {
    if (!error_) error_ = std::move(error);
  }
  void remember(std::uint64_t offset, std::span<const std::byte> data) {
    if (options_.verify) checksums_[offset] = {data.size(), checksum(data)};
  }
  void progress();
  Result<void> drain();
  [[nodiscard]] bool more_to_read() const {
    return !error_ && !ended_ && !interrupt_.raised() && (!source_.size() || next_ < *source_.size());
  }

  Endpoint& source_;
  Endpoint& destination_;
  const CopyOptions& options_;
  const Interrupt& interrupt_;
  Progress progress_;
  transport::Reactor& reactor_;
  std::deque<Slot> slots_;
  std::vector<Slot*> idle_;
  std::uint64_t next_ = 0;                // where the next read begins
  bool ended_ = false;                    // a pipe's end was met
  std::uint64_t end_ = 0;                 // of what was read
  std::uint64_t next_write_ = 0;          // for a destination that takes bytes in order only
  std::map<std::uint64_t, Slot*> early_;  // read, waiting for their turn
  std::optional<Error> error_;
  struct Checksum {
    std::size_t size;
    std::uint32_t crc;
  };
  std::map<std::uint64_t, Checksum> checksums_;  // --verify: what was written where
  std::map<std::uint64_t, Checksum>::const_iterator next_verified_;
  CopyResult result_;
};

void Copy::make_slots() {
  for (std::uint32_t i = 0; i < options_.depth; ++i) {
    Slot& slot = slots_.emplace_back();
    slot.copy = this;
    slot.transfer.owner = &slot;
    slot.buffer = source_.buffer(options_.chunk);
    if (slot.buffer.empty()) slot.buffer = destination_.buffer(options_.chunk);
    if (slot.buffer.empty()) {
      slot.own.resize(options_.chunk);
      slot.buffer = slot.own;
    }
    slot.buffer = slot.buffer.first(options_.chunk);
    idle_.push_back(&slot);
  }
}

Result<CopyResult> Copy::run() {
  const Instant began = reactor_.clock().now();
  if (options_.verify && destination_.sequential())
    return failure(ErrorKind::invalid_argument, destination_.name() + " cannot be read back: leave out --verify");
  if (auto ready = destination_.begin_writing(source_.size()); !ready) return failure(std::move(ready.error()));
  make_slots();
  if (auto moved = transfer_all(); !moved) return failure(std::move(moved.error()));
  if (auto durable = destination_.finish_writing(end_); !durable) return failure(std::move(durable.error()));
  if (options_.verify)
    if (auto same = verify_all(); !same) return failure(std::move(same.error()));
  result_.bytes = end_;
  result_.elapsed = reactor_.clock().now() - began;
  return result_;
}

void Copy::progress() {
  (void)reactor_.run_until([this] { return source_.due() || destination_.due(); }, reactor_.clock().now() + kMoment);
  source_.progress();
  destination_.progress();
  for (const Endpoint* const side : {&source_, &destination_})
    if (auto lost = side->lost()) fail(std::move(*lost));
}

Result<void> Copy::drain() {
  // Every endpoint finishes what it began, be it with an error: the buffers are theirs until then.
  while (idle_.size() < slots_.size()) {
    if (error_ || interrupt_.raised()) {
      source_.give_up();
      destination_.give_up();
      // What they wait for may have failed.
      for (const auto& [offset, waiting] : std::exchange(early_, {}))
        finish(*waiting);
    }
    progress();
  }
  // Whoever interrupts a copy knows why a transfer was cancelled.
  if (interrupt_.raised())
    return failure(ErrorKind::io,
                   fmt::format("interrupted after {} bytes: {} is incomplete", end_, destination_.name()));
  if (error_) return failure(std::move(*error_));
  return {};
}

Result<void> Copy::transfer_all() {
  while (more_to_read()) {
    skip_hole();
    while (!idle_.empty() && more_to_read()) {
      Slot& slot = *idle_.back();
      idle_.pop_back();
      read_next(slot);
      skip_hole();
    }
    progress();
    progress_.update(result_.transferred + result_.zeroes, "copying");
  }
  return drain();
}

// A hole of the source, in whole chunks, is not read. Only for destinations that can be written at any place.
void Copy::skip_hole() {
  while (more_to_read() && !destination_.sequential()) {
    std::uint64_t hole = source_.zeroes_at(next_);
    hole -= std::min(hole, hole % options_.chunk);
    if (hole == 0) return;
    zero(next_, hole);
    next_ += hole;
    end_ = std::max(end_, next_);
  }
}

void Copy::zero(std::uint64_t offset, std::uint64_t length) {
  if (auto done = destination_.zero(offset, length); !done) return fail(std::move(done.error()));
  result_.zeroes += length;
  if (!options_.verify) return;
  static const std::vector<std::byte> kZeroes(CopyOptions{}.chunk);
  for (std::uint64_t at = 0; at < length; at += options_.chunk)
    remember(offset + at, std::span(kZeroes).first(std::min<std::uint64_t>(options_.chunk, length - at)));
}

void Copy::read_next(Slot& slot) {
  Transfer& transfer = slot.transfer;
  transfer.offset = next_;
  transfer.data = slot.buffer;
  transfer.error.reset();
  if (source_.size())
    transfer.data = transfer.data.first(std::min<std::uint64_t>(options_.chunk, *source_.size() - next_));
  next_ += transfer.data.size();
  transfer.done = [](Transfer& t) { static_cast<Slot*>(t.owner)->copy->on_read(*static_cast<Slot*>(t.owner)); };
  source_.read(transfer);
}

void Copy::on_read(Slot& slot) {
  Transfer& transfer = slot.transfer;
  if (transfer.error) {
    fail(std::move(*transfer.error));
    return finish(slot);
  }
  if (!source_.size() && transfer.data.size() < slot.buffer.size()) ended_ = true;
  if (transfer.data.empty()) return finish(slot);
  end_ = std::max(end_, transfer.offset + transfer.data.size());
  if (const auto limit = destination_.size();
      limit && !source_.size() && destination_.block_size() > 1 && end_ > *limit) {
    fail({ErrorKind::invalid_argument,
          fmt::format("{} has {} bytes and {} goes on: too small", destination_.name(), *limit, source_.name())});
    return finish(slot);
  }
  // The last block is written whole.
  const std::size_t block = destination_.block_size();
  const std::size_t padded = (transfer.data.size() + block - 1) / block * block;
  std::fill(slot.buffer.begin() + static_cast<std::ptrdiff_t>(transfer.data.size()),
            slot.buffer.begin() + static_cast<std::ptrdiff_t>(padded), std::byte{0});
  transfer.data = slot.buffer.first(padded);
  write_in_order(slot);
}

void Copy::write_in_order(Slot& slot) {
  if (!destination_.sequential()) return write(slot);
  early_[slot.transfer.offset] = &slot;
  while (!early_.empty() && early_.begin()->first == next_write_) {
    Slot& due = *early_.begin()->second;
    early_.erase(early_.begin());
    next_write_ += due.transfer.data.size();
    write(due);
  }
}

void Copy::write(Slot& slot) {
  Transfer& transfer = slot.transfer;
  if (error_) return finish(slot);
  if (!destination_.sequential() && all_zero(transfer.data)) {
    zero(transfer.offset, transfer.data.size());
    return finish(slot);
  }
  remember(transfer.offset, transfer.data);
  transfer.done = [](Transfer& t) { static_cast<Slot*>(t.owner)->copy->on_written(*static_cast<Slot*>(t.owner)); };
  destination_.write(transfer);
}

void Copy::on_written(Slot& slot) {
  if (slot.transfer.error)
    fail(std::move(*slot.transfer.error));
  else
    result_.transferred += slot.transfer.data.size();
  finish(slot);
}

Result<void> Copy::verify_all() {
  next_verified_ = checksums_.begin();
  while (next_verified_ != checksums_.end() && !error_ && !interrupt_.raised()) {
    while (!idle_.empty() && next_verified_ != checksums_.end()) {
      Slot& slot = *idle_.back();
      idle_.pop_back();
      verify_next(slot);
    }
    progress();
    progress_.update(result_.verified, "verifying");
  }
  return drain();
}

void Copy::verify_next(Slot& slot) {
  Transfer& transfer = slot.transfer;
  transfer.offset = next_verified_->first;
  transfer.data = slot.buffer.first(next_verified_->second.size);
  transfer.error.reset();
  ++next_verified_;
  std::fill(transfer.data.begin(), transfer.data.end(), std::byte{0xa5});  // what is not transferred must not pass
  transfer.done = [](Transfer& t) { static_cast<Slot*>(t.owner)->copy->on_verified(*static_cast<Slot*>(t.owner)); };
  destination_.read(transfer);
}

void Copy::on_verified(Slot& slot) {
  const Transfer& transfer = slot.transfer;
  const Checksum& wanted = checksums_.at(transfer.offset);
  if (transfer.error) {
    fail(*transfer.error);
  } else if (transfer.data.size() != wanted.size || checksum(transfer.data) != wanted.crc) {
    fail({ErrorKind::mismatch, fmt::format("{}: bytes {} to {} are not what was written: do not trust this copy",
                                           destination_.name(), transfer.offset, transfer.offset + wanted.size - 1)});
  } else {
    result_.verified += wanted.size;
  }
  finish(slot);
}

}  // namespace

Result<CopyResult> copy(Endpoint& source, Endpoint& destination, const CopyOptions& options,
                        transport::Reactor& reactor, const Interrupt& interrupt) {
  return Copy(source, destination, options, reactor, interrupt).run();
}

}  // namespace rbt::tools
