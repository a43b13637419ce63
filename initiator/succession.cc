// One process's volume after another's: who it was, that it is over, and what was lost with its memory.

#include "initiator/succession.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "initiator/recovery.h"

namespace rbt::initiator {

namespace {

// What a URI says of how to connect may change from one process to the next.
bool same_address(const Uri& a, const Uri& b) {
  return a.scheme == b.scheme && a.host == b.host && a.port == b.port && a.nqn == b.nqn && a.nsid == b.nsid &&
         a.option("socket") == b.option("socket");
}

}  // namespace

Result<void> check_predecessor(const Succession& predecessor) {
  const auto refuse = [](std::string_view what) {
    return rbt::failure(
        ErrorKind::invalid_argument,
        fmt::format("the predecessor's record is not one: {}; without a predecessor the volume is opened "
                    "as a new one, which is safe when the old one has been dead for a while",
                    what));
  };
  const auto nqn = nvme::Nqn::parse(predecessor.host_nqn);
  if (!nqn) return refuse(nqn.error().message());
  if (predecessor.host_id.is_zero()) return refuse("its host identifier is zero");
  if (const auto uri = Uri::parse(predecessor.uri); !uri) return refuse(uri.error().message());
  if (!BlockShift::of(predecessor.disk.block_size))
    return refuse(fmt::format("its blocks have {} bytes; powers of two from 512 to 4096 are possible",
                              predecessor.disk.block_size));
  if (predecessor.disk.blocks == Blocks(0)) return refuse("its disk has no blocks");
  if (predecessor.keep_alive < Duration::zero()) return refuse("its keep-alive timeout is negative");
  if (predecessor.association.number == 0 && predecessor.keep_alive == Duration::zero())
    return refuse("its target cannot end its association, and it has no keep-alive that would");
  return {};
}

// The record was checked.
void Volume::Implementation::succeed(const Succession& predecessor) {
  options_.session.host.id = predecessor.host_id;
  options_.session.host.nqn = nvme::Nqn::parse(predecessor.host_nqn).value();
  const auto path =
      std::find_if(uris_.begin(), uris_.end(),
                   [was = Uri::parse(predecessor.uri).value()](const Uri& uri) { return same_address(uri, was); });
  uri_ = path == uris_.end() ? 0 : static_cast<std::size_t>(path - uris_.begin());
  old_ = Old{.id = predecessor.association,
             .uri = static_cast<std::size_t>(path - uris_.begin()),
             .silent = silent_from(now(), predecessor.keep_alive)};
  disk_.uuid = predecessor.disk.uuid;
  disk_.nguid = predecessor.disk.nguid;
  disk_.eui64 = predecessor.disk.eui64;
  disk_.block_shift = *BlockShift::of(predecessor.disk.block_size);
  disk_.blocks = predecessor.disk.blocks;
  incarnation_ = predecessor.incarnation;
  if (predecessor.memory == MemoryKind::on) shared_.inherited = true;
}

// The URI's hostnqn= and hostid= go before everything.
Result<void> Volume::Implementation::check_host() {
  if (!options_.predecessor || !old_) return {};
  const Succession& predecessor = *options_.predecessor;
  if (session_->host_id() == predecessor.host_id && session_->host_nqn().text() == predecessor.host_nqn) return {};
  fatal_ = true;
  return rbt::failure(
      ErrorKind::invalid_argument,
      fmt::format(
          "{} connects as host \"{}\" with identifier {}, the predecessor was \"{}\" with {}: a target fences off "
          "associations of the same host only; give the host that it was, or none",
          uris_[uri_].to_string(), session_->host_nqn().text(), session_->host_id().to_string(), predecessor.host_nqn,
          predecessor.host_id.to_string()));
}

Result<void> Volume::Implementation::check_inheritance(const std::optional<nvme::Incarnation>& incarnation) {
  if (!shared_.inherited || (incarnation && incarnation_ == incarnation)) return {};
  const std::string what = fmt::format(
      "{}: the target may have lost writes that it had acknowledged to the process before this one and that were not "
      "flushed, and their copies have gone with that process",
      uris_[uri_].to_string());
  if (options_.accept_loss == AcceptLoss::no) {
    fatal_ = true;
    return rbt::failure(ErrorKind::mismatch, what + "; check what is on it, then go on by accepting the loss");
  }
  environment_.logger.warning("{}; going on, as told", what);
  shared_.inherited = false;
  return {};
}

Succession Volume::Implementation::succession() const {
  return {.host_nqn = options_.session.host.nqn ? options_.session.host.nqn->text() : std::string(),
          .host_id = options_.session.host.id.value_or(nvme::HostId()),
          .uri = uris_[association_uri_].to_string(),
          .association = association_,
          .keep_alive = association_keep_alive_,
          .disk = {.uuid = disk_.uuid,
                   .nguid = disk_.nguid,
                   .eui64 = disk_.eui64,
                   .block_size = disk_.block_size(),
                   .blocks = disk_.blocks},
          .memory = shared_.inherited ? MemoryKind::on : statistics_.memory,
          .incarnation = incarnation()};
}

std::optional<nvme::Incarnation> Volume::Implementation::incarnation() const noexcept {
  return shared_.flush_failed.load(std::memory_order_relaxed) ? std::nullopt : incarnation_;
}

Result<void> Volume::Implementation::note_succession() {
  if (!options_.on_succession) return {};
  Succession now = succession();
  if (noted_ == now) return {};
  if (auto noted = options_.on_succession(now); !noted)
    return rbt::failure(std::move(noted.error()).within("writing down what a successor has to know"));
  noted_ = std::move(now);
  return {};
}

}  // namespace rbt::initiator
