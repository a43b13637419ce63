#pragma once
// NBD requests on their way through a volume: what they are made of, and the order that they must keep.

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "initiator/present/nbd_arena.h"
#include "initiator/present/nbd_protocol.h"
#include "initiator/volume.h"

namespace rbt::initiator::nbd {

class Jobs;
class Connection;

/// One request of a client's, from its header to the last byte of its reply.
struct Job {
  enum class State : std::uint8_t {
    free,
    receiving,  ///< its data is on its way from the client
    waiting,    ///< for another one with the same blocks, or for room in the volume; woken by Jobs::retry()
    submitted,  ///< with the volume; woken by its end
    replying,   ///< with its connection, which sends it
  };
  State state = State::free;
  bool changes = false;           ///< blocks: write, trim, write zeroes
  bool flush_after = false;       ///< a trim with FUA
  std::uint32_t error = 0;        ///< as NBD has it
  std::uint32_t length = 0;       ///< of the data; 0: none
  Connection* client = nullptr;   ///< null: it has gone, nobody is told
  Arena* arena = nullptr;         ///< its connection's
  std::span<std::byte> buffer{};  ///< of the arena
  std::array<std::byte, Reply::kSize> header{};
  iovec data{};
  BlockRange range{};
  Request request{};
  std::uint64_t cookie = 0;
  Jobs* jobs = nullptr;
  Job* next = nullptr;         ///< free, or in its connection's output
  Job* next_active = nullptr;  ///< waiting or submitted, in order of arrival
  Job* previous_active = nullptr;
};

/// All jobs of a server. The reactor's thread. Nothing is allocated after create().
///
/// A client that has lost a connection sends its requests once more over another one (Linux does when one takes longer than its
/// timeout), and hears only of the second. Two rules keep the first from landing on top of what came after the second: a request
/// that changes blocks waits for those that came before it and change the same ones, and nothing is begun any more for a
/// connection that has been shut down.
class Jobs {
 public:
  /// Longest data of one request: what a block of the pool holds.
  static constexpr std::uint32_t kDataMax = Arena::kBlock;

  [[nodiscard]] static std::unique_ptr<Jobs> create(Volume& volume, std::uint32_t count, std::uint32_t connections,
                                                    bool read_only);
  /// Those that are with the volume end there; the memory goes with the last of them.
  static void leave(std::unique_ptr<Jobs> jobs);
  ~Jobs() = default;
  Jobs(const Jobs&) = delete;
  Jobs& operator=(const Jobs&) = delete;

  /// NBD's transmission flags of the volume.
  [[nodiscard]] std::uint16_t flags() const noexcept;
  [[nodiscard]] Volume& volume() const noexcept { return volume_; }

  /// An arena for a connection, until leave_arena(); what its predecessor left with the volume may still be in it.
  [[nodiscard]] Arena& enter_arena() noexcept;
  void leave_arena(const Arena& arena) noexcept;

  /// A free one for `client`; null: none is.
  [[nodiscard]] Job* take(Connection& client) noexcept;
  void give_back(Job& job) noexcept;
  /// Fills in what `command` wants. Returns NBD's error if it cannot be done, and 0 if it can.
  [[nodiscard]] std::uint32_t prepare(Job& job, const Command& command) const noexcept;
  /// False: no memory at the moment.
  [[nodiscard]] bool allocate(Job& job, Arena& arena, std::uint32_t length) noexcept;

  /// The job's data is there, if it has any. Its client is told by Connection::reply(), from within or later.
  void submit(Job& job);
  /// Once a turn: what waited and need not any more. Returns how many were begun.
  std::size_t retry();
  /// `client` goes: what is with the volume goes on without it, the rest is forgotten.
  void abandon(const Connection& client) noexcept;

  /// Ever, by the volume.
  [[nodiscard]] std::uint64_t begun() const noexcept { return begun_; }
  /// Of buffers, now.
  [[nodiscard]] Bytes in_use() const noexcept { return Bytes(in_use_); }

 private:
  Jobs(Volume& volume, std::uint32_t count, std::uint32_t connections, bool read_only);
  void free_buffer(Job& job) noexcept;
  /// By option, or as the disk is now.
  [[nodiscard]] bool is_read_only() const noexcept { return read_only_ || volume_.disk().read_only; }
  static void on_done(Request& request);
  [[nodiscard]] std::uint32_t prepare_range(Job& job, const Command& command) const noexcept;
  [[nodiscard]] bool must_wait(const Job& job) const noexcept;
  [[nodiscard]] bool begin(Job& job);
  void finish(Job& job);
  void unlink(Job& job) noexcept;

  Volume& volume_;
  const bool read_only_;
  struct Place {
    Arena arena;
    bool taken = false;
  };
  std::vector<Place> places_;
  std::vector<Job> jobs_;
  Job* free_ = nullptr;
  Job* oldest_ = nullptr;  // active
  Job* newest_ = nullptr;
  std::size_t waiting_ = 0;
  std::size_t submitted_ = 0;
  std::uint64_t begun_ = 0;
  std::uint64_t in_use_ = 0;
  bool retry_ = false;  // something has ended since the last look
  bool left_ = false;   // deletes itself with the last one
};

}  // namespace rbt::initiator::nbd
