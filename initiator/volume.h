#pragma once
// A disk that survives its path: a session that is replaced when it is lost, and requests that wait for that.
//
//   auto volume = Volume::open(environment, {uri}, reactor, {});
//   (*volume)->write(request, Lba(0), iovecs);
//   (*volume)->run_until([&] { return !request.in_flight(); }, deadline);
//
// Callers see latency, not errors. docs/recovery.md has the states, and what holds against which target.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "initiator/initiator.h"
#include "initiator/succession.h"
#include "initiator/volume_statistics.h"

namespace rbt::initiator {

/// Where a volume stands. Transitions: docs/recovery.md.
enum class VolumeState : std::uint8_t {
  live,          ///< requests are carried out. Left when a queue, the keep-alive or a command's deadline says so
  lost,          ///< the path has ended; what is left of it on this side has not been taken down. Woken by progress()
  reconnecting,  ///< nothing is connected, or not yet fenced. Woken by a timer, then by progress()
  fenced,        ///< the old association can touch nothing any more; the new one is being prepared, within progress()
  failed,        ///< for good: failure() says why. Requests end, and new ones are not taken
  closed,        ///< close() was called
};
[[nodiscard]] std::string_view name(VolumeState state) noexcept;

/// What has become of the disk while it was used. docs/recovery.md says what requests do then.
enum class DiskChange : std::uint8_t {
  grown,
  shrunk,     ///< requests behind the new end are out_of_range
  removed,    ///< requests fail as the target says
  returned,   ///< the same disk as before it was removed
  read_only,  ///< writes are unsupported
  writable,
};
[[nodiscard]] std::string_view name(DiskChange change) noexcept;

enum class Fencing : std::uint8_t {
  on,
  off  ///< an old write may land on top of a newer one: only to show that it does
};

struct VolumeOptions {
  /// Of every session. `io_queues` is `lanes`, `management` the volume's reactor, the callbacks and other timeouts are the volume's
  /// own. Without a host identifier here or in the URI the first session's is kept. keep_alive: an idle volume notices after
  /// one and a half of it that its path is gone, and against foreign targets two of it pass before it goes on; 5 s, as
  /// Linux has it, unless told otherwise. 0: only against targets that can fence.
  SessionOptions session{.keep_alive = std::chrono::seconds(5)};
  /// Of every queue pair. `buffers` is the volume's own: see buffers(); so is on_lost.
  QueuePairOptions queue{};
  /// Queue pairs, 1 to 64: the first is that of the thread that turns the volume's reactor, the others have threads of the
  /// volume's own. Fewer if the target that open() finds grants fewer: Volume::lanes().
  std::uint32_t lanes = 1;
  /// Instead of such threads: the reactors of the second lane and all that follow; `lanes` is ignored. Others turn them, from before
  /// open() until the volume is gone; they outlive it.
  std::vector<transport::Reactor*> lane_reactors{};
  std::uint32_t requests = 256;  ///< of each lane, taken at a time, 1 to 65536: in flight, or waiting for a path
  /// How long without a path until the volume fails; none: never; 0: at once. From the moment the path is lost.
  std::optional<Duration> on_loss{};
  /// Between two attempts to connect, doubled from one to the next; each is 50 to 100 % of that, by chance.
  Duration backoff_first = std::chrono::milliseconds(50);
  Duration backoff_max = std::chrono::milliseconds(500);
  /// For each step of one attempt: connect, fence, write again; and for the fabric's connection, its first. With the
  /// longest pause: how long after the target is there again the volume may not have noticed.
  Duration attempt_timeout = std::chrono::seconds(8);
  Duration reach_timeout = std::chrono::seconds(1);
  /// Memory for writes that were done and not flushed, kept to be written again to a target that has lost them; at least
  /// 4 MiB, 0: none are. When it is half full the volume flushes by itself. A request carries at most a quarter of it. Each
  /// lane has an equal share, or 4 MiB.
  Bytes unflushed{32 * kMiB};
  Fencing fencing = Fencing::on;
  /// How long open() goes on trying, all URIs again and again, when what it met may pass; 0: one attempt per URI.
  Duration open_patience{0};
  /// The volume of a process that has ended, which this one goes on with: fenced off before the first command, and the same
  /// disk, or open() fails. It is the caller who knows that the process has ended: one that has not is a second writer.
  std::optional<Succession> predecessor{};
  /// If the predecessor kept unflushed writes and the target may have forgotten them since: open() fails, or goes on
  /// without. The same while they are not durable yet: the volume flushes them first of all.
  AcceptLoss accept_loss = AcceptLoss::no;
  /// What a successor has to be given from now on: to be written down before this returns. Called when an association is
  /// fenced off and before the first command of its successor that could change anything; again, if it has changed, before
  /// `live`. From within open() and progress(). An error ends the attempt to connect, as if the path were lost.
  std::function<Result<void>(const Succession&)> on_succession{};
  /// disk() has changed since it was told last, or since open(). From within progress(), outside of the reactor's turns; it
  /// may turn the reactor and call into the volume, but for progress(), run_until() and close().
  std::function<void(DiskChange)> on_change{};
  /// Every change of state, with the reason for `lost`, `reconnecting` (again) and `failed`. From within open(), progress()
  /// or a turn of the reactor; of the volume it may call what is const.
  std::function<void(VolumeState, const Error*)> on_state{};
};

/// One of a volume's queue pairs and what is submitted to it. Belongs to the thread that turns its reactor; requests are done
/// there. Requests of several lanes have no order, as those that are in flight together have none in one.
class VolumeLane {
 public:
  virtual ~VolumeLane() = default;
  /// As Volume::submit().
  virtual Submitted submit(Request& request) = 0;
  /// As this lane knows it: Volume::disk(), a moment ago.
  [[nodiscard]] virtual const Namespace& disk() const noexcept = 0;
  /// Any thread: Reactor::post() is the way in. While the volume has the lane do something it is turned from within a task.
  [[nodiscard]] virtual transport::Reactor& reactor() const noexcept = 0;
};

/// One namespace, over one path at a time. Belongs to the thread that turns its reactor: every call, callbacks too. It must
/// be the only writer of the namespace while it is open: what it writes again would be older than what others wrote since.
/// No allocation per request.
class Volume {
 public:
  /// Connects, with one attempt per URI and no patience. Several URIs: paths to one namespace (same identity), the first that
  /// works is used, and the next one when that is lost. Each names subsystem and, unless there is only one, namespace. Error:
  /// what Session::connect() says of the last one; unsupported (keep_alive 0 with a target that cannot fence); with a
  /// predecessor: mismatch (another disk, or its writes may be lost: VolumeOptions::accept_loss), invalid_argument (the URI
  /// names another host than it was). A predecessor that only its keep-alive ends is waited for, twice its timeout, in here.
  [[nodiscard]] static Result<std::unique_ptr<Volume>> open(const Environment& environment, std::span<const Uri> uris,
                                                            transport::Reactor& reactor, const VolumeOptions& options);
  /// close().
  ~Volume();
  Volume(const Volume&) = delete;
  Volume& operator=(const Volume&) = delete;
  /// What has not ended does so with Outcome::aborted, from within, on its lane's thread. Not from within a callback.
  void close();

  /// As QueuePair's (queue_pair.h): same requests, same rules for what they name. `full`: VolumeOptions::requests are taken.
  /// `refused`: also what carries more than request_max(), or more than 256 ranges. `dead`: failed or closed. Outcomes are
  /// those of QueuePair but timed_out and disconnected, which only a failed volume has. A write that was answered may be
  /// carried out again later in place of a target that forgot it, after writes that were in flight beside it.
  Submitted read(Request& request, Lba first, std::span<const iovec> data);
  Submitted write(Request& request, Lba first, std::span<const iovec> data,
                  nvme::ForceUnitAccess fua = nvme::ForceUnitAccess::no);
  Submitted compare(Request& request, Lba first, std::span<const iovec> data);
  Submitted flush(Request& request);
  Submitted discard(Request& request, std::span<const BlockRange> ranges);
  Submitted write_zeroes(Request& request, BlockRange range, nvme::Deallocate deallocate = nvme::Deallocate::no,
                         nvme::ForceUnitAccess fua = nvme::ForceUnitAccess::no);
  /// What the calls above do once the request is filled in; `target` is set here. All of them: lane 0.
  Submitted submit(Request& request);

  /// As long as the volume lives, also closed; the first is on the volume's reactor. Any thread, but for lane 0's own calls.
  [[nodiscard]] std::size_t lanes() const noexcept;
  [[nodiscard]] VolumeLane& lane(std::size_t which) noexcept;

  /// Turns the reactor and makes progress until `done` or `deadline` (then false). An attempt to connect ends first: up to a
  /// few times attempt_timeout later. Not from within a callback.
  [[nodiscard]] bool run_until(const std::function<bool()>& done, Instant deadline);
  /// For those who turn the reactor themselves: whenever progress_due(), call progress() outside of its turns. That takes a lost
  /// path down, connects a new one, looks at a disk that has changed, and turns the reactor meanwhile. A timer ends the reactor's sleep when it becomes due.
  [[nodiscard]] bool progress_due() const noexcept;
  void progress();

  [[nodiscard]] VolumeState state() const noexcept;
  /// Why it is failed, or why the path was lost, or could not be had again, last; null: it never was.
  [[nodiscard]] const Error* failure() const noexcept;
  /// As it is now; lives as long as the volume. Its size follows the target's (VolumeOptions::on_change); after it has been
  /// removed: as it was.
  [[nodiscard]] const Namespace& disk() const noexcept;
  [[nodiscard]] Bytes request_max() const noexcept;  ///< of data in one request
  /// Requests submitted and not done, of all lanes.
  [[nodiscard]] std::uint32_t in_flight() const noexcept;
  /// As of now; 40 KiB, so they are not copied.
  [[nodiscard]] const VolumeStatistics& statistics() const noexcept;
  /// What a successor would have to be given now; as VolumeOptions::on_succession was told, in every state.
  [[nodiscard]] Succession succession() const;
  /// Memory that every path can reach without a copy: QueuePairOptions::buffers of it; null if that was 0.
  [[nodiscard]] transport::BufferPool* buffers() noexcept;

 private:
  class Implementation;
  class Lane;
  struct Shared;
  explicit Volume(std::unique_ptr<Implementation> implementation) noexcept;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace rbt::initiator
