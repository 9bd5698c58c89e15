// Two videos that run as one: started together, held together, and begun again together when both are over.

const PLAYABLE = 3; // readyState: what comes next is there

// onRound is called whenever both have run to their end; wait(f, ms) and frame(f) are the page's clocks.
export function together(videos, { onRound = () => {}, wait = setTimeout, frame = requestAnimationFrame, pause = 700 } = {}) {
  const [lead, follow] = videos;
  let fps = 16, going = false, load = 0, ended = [false, false], plays = 0;

  const ready = () => videos.every((video, index) => ended[index] || video.readyState >= PLAYABLE);
  function start() {
    if (!going || !ready()) return;
    videos.forEach((video, index) => { if (!ended[index]) video.play()?.catch?.(() => {}); });
  }
  function hold() { for (const video of videos) video.pause(); }
  // One of them has nothing to show: the other waits, or they would part.
  function stalled(index) {
    if (!going || ended[index] || videos[index].readyState >= PLAYABLE) return;
    hold();
  }
  function over(index) {
    ended[index] = true;
    if (!ended.every(Boolean)) return;
    plays += 1;
    onRound(plays);
    const mine = load;
    wait(() => { if (mine === load && going && ended.every(Boolean)) replay(); }, pause);
  }
  function replay() {
    going = true;
    ended = [false, false];
    for (const video of videos) video.currentTime = 0;
    start();
  }
  function step() {
    const apart = follow.currentTime - lead.currentTime;
    if (going && !lead.paused && !follow.paused && !follow.seeking && !ended.some(Boolean) && Math.abs(apart) > 1 / fps) {
      follow.currentTime = lead.currentTime;
    }
    frame(step);
  }
  videos.forEach((video, index) => {
    video.addEventListener("ended", () => over(index));
    video.addEventListener("waiting", () => stalled(index));
    video.addEventListener("canplay", start);
    video.addEventListener("canplaythrough", start);
  });
  frame(step);

  return {
    get plays() { return plays; },
    get going() { return going; },
    show(sources, rate, { play = true } = {}) {
      [fps, going, plays, ended] = [rate, play, 0, [false, false]];
      load += 1;
      videos.forEach((video, index) => { video.src = sources[index]; video.load(); });
    },
    replay,
    toggle() {
      if (going) { going = false; hold(); }
      else if (ended.every(Boolean)) replay();
      else { going = true; start(); }
      return going;
    },
    speed(rate) { for (const video of videos) video.playbackRate = video.defaultPlaybackRate = rate; },
    stop() { going = false; hold(); },
  };
}
